#include "launch.h"

#include <atomic>
#include <new>
#include <stdexcept>

#include "queue.h"
#include "recorder.h"
#include "storage.h"
#include "threads.h"

namespace needle {

namespace {

Table tables[device_count];
std::atomic<uint64_t> counts[device_count][kernel_count];

void run_recorded(Device device, const Entry& entry, const Call& call)
{
    finish_all();
    int64_t start = clock_now();
    entry.run(call);
    record(static_cast<int>(device), start, clock_now() - start, call);
}

// NumPy's kernels are the host's: they must not touch a block that a waiting call still uses.
void run_elsewhere(Device device, const Entry& entry, const Call& call)
{
    if (device == Device::reference) finish_all();
    entry.run(call);
}

class CpuBackend : public Backend {
public:
    void* allocate(int64_t bytes) override { return needle::allocate(bytes); }
    void release(void* data, int64_t bytes) override { needle::release(data, bytes); }
    std::string out_of_memory(int64_t bytes) override
    {
        MemoryStats stats = memory_stats();
        return "cpu: out of memory: asked for " + std::to_string(bytes) +
               " bytes: " + std::to_string(stats.held) + " held, " + std::to_string(stats.in_use) +
               " of them in use, limit " +
               (stats.limit > 0 ? std::to_string(stats.limit) : std::string("none"));
    }
};

Backend* backends[device_count];

// Scratch memory for one call. It is given back when launch() returns: where the call still waits,
// whoever gets the block next runs later.
class Workspace {
public:
    Workspace(Backend& backend, int64_t bytes)
        : backend_(backend), bytes_(bytes), data_(bytes > 0 ? backend.allocate(bytes) : nullptr)
    {
        if (bytes > 0 && data_ == nullptr) throw OutOfMemory(backend.out_of_memory(bytes));
    }
    ~Workspace()
    {
        if (data_ != nullptr) backend_.release(data_, bytes_);
    }
    Workspace(const Workspace&) = delete;
    Workspace& operator=(const Workspace&) = delete;
    void* data() const { return data_; }

private:
    Backend& backend_;
    int64_t bytes_;
    void* data_;
};

}  // namespace

Backend& device_backend(Device device)
{
    static CpuBackend* cpu = new CpuBackend;  // outlives arrays that die at the interpreter's end
    Backend* found = backends[static_cast<int>(device)];
    return found != nullptr ? *found : *cpu;
}

void set_device_backend(Device device, Backend* backend)
{
    backends[static_cast<int>(device)] = backend;
}

Table& device_table(Device device) { return tables[static_cast<int>(device)]; }

void launch(Device device, int kernel, Call& call)
{
    // A copy: set_isa() may change the table meanwhile.
    const Entry entry = tables[static_cast<int>(device)][kernel];
    if (entry.run == nullptr)
        throw std::runtime_error(std::string(kernel_names[kernel]) +
                                 ": no such kernel: got device " +
                                 device_names[static_cast<int>(device)] +
                                 ": move the arrays to another device with .to(device)");
    call.kernel = kernel;
    begin_kernel(thread_setting());
    Backend& backend = device_backend(device);
    Workspace workspace(backend, entry.workspace != nullptr ? entry.workspace(call) : 0);
    call.workspace = workspace.data();
    call.stream = backend.stream();
    counts[static_cast<int>(device)][kernel].fetch_add(1, std::memory_order_relaxed);
    if (__builtin_expect(recording(), 0))
        run_recorded(device, entry, call);
    else if (device == Device::cpu)
        run_in_turn(entry, call);
    else
        run_elsewhere(device, entry, call);
}

uint64_t call_count(Device device, int kernel)
{
    return counts[static_cast<int>(device)][kernel].load(std::memory_order_relaxed);
}

void reset_call_counts()
{
    for (auto& device : counts)
        for (auto& count : device) count.store(0, std::memory_order_relaxed);
}

}  // namespace needle
