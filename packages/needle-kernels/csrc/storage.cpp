#include "storage.h"

#include <atomic>
#include <cstdint>
#include <cstdlib>

#include "allocator.h"
#include "launch.h"
#include "queue.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace needle {

namespace {

constexpr const char* dtype_names[] = {"float32", "float64", "int32", "int64", "uint8", "bool"};
constexpr int64_t cache_line = 64;
constexpr int64_t huge_page = int64_t{2} << 20;

// From a huge page on, a block takes huge pages, and begins some lines behind the first one's
// start: successive blocks at other places of a page. A kernel that goes through several in step
// would otherwise meet the same sets of the first-level cache with all of them, and on AMD, where
// two lines of a set that lie 256 MB apart drive each other out, the same lines.
constexpr int64_t places = 8;
constexpr int64_t place_step = 4096 + 256;

void* system_allocate(int64_t bytes)
{
    static std::atomic<int64_t> blocks{0};
    bool huge = bytes >= huge_page;
    int64_t alignment = huge ? huge_page : cache_line;
    int64_t start = huge ? blocks++ % places * place_step : 0;
    auto rounded = [&](int64_t n) {
        return static_cast<size_t>((n + alignment - 1) / alignment * alignment);
    };
    void* data = std::aligned_alloc(static_cast<size_t>(alignment), rounded(start + bytes));
    if (data == nullptr) return nullptr;
#if defined(__linux__)
    if (huge) madvise(data, rounded(bytes), MADV_HUGEPAGE);
#endif
    return static_cast<char*>(data) + start;
}

void system_free(void* data, int64_t bytes)
{
    finish_all();  // a freed block may still be an operand
    auto start = bytes >= huge_page ? reinterpret_cast<uintptr_t>(data) % huge_page : 0;
    std::free(static_cast<char*>(data) - start);
}

// Never destroyed: arrays that outlive the interpreter's shutdown may still be freed.
CachingAllocator& allocator()
{
    static CachingAllocator* instance = new CachingAllocator(system_allocate, system_free);
    return *instance;
}

#if defined(__unix__) || defined(__APPLE__)
[[maybe_unused]] const int registered = pthread_atfork(
    [] { allocator().lock(); }, [] { allocator().unlock(); }, [] { allocator().unlock(); });
#endif

}  // namespace

const char* dtype_name(DType dtype) { return dtype_names[static_cast<int>(dtype)]; }

void* allocate(int64_t bytes) { return allocator().take(bytes); }
void release(void* data, int64_t bytes) { allocator().give(data, bytes); }
void empty_cache() { allocator().empty(); }
void set_memory_limit(int64_t bytes) { allocator().set_limit(bytes); }
void set_pooling(bool on) { allocator().set_pooling(on); }
MemoryStats memory_stats() { return allocator().stats(); }
void reset_peak() { allocator().reset_peak(); }

// The block may be one that calls of the queue still use: the new owner's host must wait for them.
// So they are counted once the block is there: any that used it was queued before it was given
// back.
Storage::Storage(int64_t size, DType dtype) : data_(nullptr), size_(size), dtype_(dtype)
{
    data_ = allocate(bytes());
    last_call = newest_call();
    if (data_ == nullptr) throw OutOfMemory(device_backend(Device::cpu).out_of_memory(bytes()));
}

Storage::Storage(void* data, int64_t size, DType dtype, std::shared_ptr<void> owner)
    : shared(true), data_(data), size_(size), dtype_(dtype), owner_(std::move(owner))
{
}

Storage::~Storage()
{
    if (owner_ == nullptr) release(data_, bytes());
}

}  // namespace needle
