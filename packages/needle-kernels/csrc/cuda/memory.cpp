#include "memory.h"

#include <atomic>

#include "runtime.h"

namespace needle::cuda {

namespace {

std::shared_ptr<GraphMemory> source;  // of the recording that is under way

// Which graph a block belongs to; asked only while there are any.
std::mutex owners_mutex;
std::unordered_map<void*, std::shared_ptr<GraphMemory>>& owners()
{
    static auto* instance = new std::unordered_map<void*, std::shared_ptr<GraphMemory>>;
    return *instance;
}
std::atomic<int64_t> owned{0};

std::shared_ptr<GraphMemory> owner_of(void* data)
{
    if (owned.load(std::memory_order_acquire) == 0) return nullptr;
    std::lock_guard<std::mutex> lock(owners_mutex);
    auto found = owners().find(data);
    return found == owners().end() ? nullptr : found->second;
}

void return_block(void* data, int64_t block)
{
    {
        std::lock_guard<std::mutex> lock(owners_mutex);
        owned.fetch_sub(static_cast<int64_t>(owners().erase(data)));
    }
    allocator().give(data, block);
}

}  // namespace

// Never destroyed: arrays that outlive the interpreter's shutdown may still be freed.
CachingAllocator& allocator()
{
    static CachingAllocator* instance =
        new CachingAllocator(system_allocate, [](void* data, int64_t) { system_free(data); });
    return *instance;
}

void* GraphMemory::take(int64_t bytes)
{
    std::lock_guard<std::mutex> lock(mutex_);
    int64_t block = size_class(bytes);
    auto& ready = free_[block];
    if (!ready.empty()) {
        void* data = ready.back();
        ready.pop_back();
        return data;
    }
    return add_block(block);
}

void* GraphMemory::take_fresh(int64_t bytes)
{
    std::lock_guard<std::mutex> lock(mutex_);
    return add_block(size_class(bytes));
}

void* GraphMemory::add_block(int64_t block)
{
    void* data = allocator().take(block);
    if (data == nullptr) return nullptr;
    blocks_[data] = block;
    std::lock_guard<std::mutex> owners_lock(owners_mutex);
    owners()[data] = source;
    owned.fetch_add(1);
    return data;
}

void GraphMemory::give(void* data)
{
    std::lock_guard<std::mutex> lock(mutex_);
    if (closed_)
        return_block(data, blocks_[data]);
    else
        free_[blocks_[data]].push_back(data);
}

void GraphMemory::close()
{
    std::lock_guard<std::mutex> lock(mutex_);
    closed_ = true;
    for (auto& [block, ready] : free_) {
        for (void* data : ready) return_block(data, block);
        ready.clear();
    }
}

bool GraphMemory::owns(void* data)
{
    std::lock_guard<std::mutex> lock(mutex_);
    return blocks_.count(data) != 0;
}

void allocate_from(std::shared_ptr<GraphMemory> memory) { source = std::move(memory); }

void* CudaBackend::allocate(int64_t bytes)
{
    return source != nullptr ? source->take(bytes) : allocator().take(bytes);
}

void CudaBackend::release(void* data, int64_t bytes)
{
    if (std::shared_ptr<GraphMemory> graph = owner_of(data))
        graph->give(data);
    else
        allocator().give(data, bytes);
}

void* CudaBackend::stream() { return cuda::stream(); }

std::string CudaBackend::out_of_memory(int64_t bytes)
{
    MemoryStats stats = allocator().stats();
    return "cuda: out of memory: asked for " + std::to_string(bytes) +
           " bytes: " + std::to_string(stats.held) + " held, " + std::to_string(stats.in_use) +
           " of them in use, " + std::to_string(free_memory()) + " free on the device, limit " +
           (stats.limit > 0 ? std::to_string(stats.limit) : std::string("none"));
}

}  // namespace needle::cuda
