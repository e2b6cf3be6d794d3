#include "storage.h"

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

void* system_allocate(int64_t bytes)
{
    int64_t alignment = bytes >= huge_page ? huge_page : cache_line;
    int64_t rounded = (bytes + alignment - 1) / alignment * alignment;
    void* data = std::aligned_alloc(static_cast<size_t>(alignment), static_cast<size_t>(rounded));
#if defined(__linux__)
    if (data != nullptr && bytes >= huge_page)
        madvise(data, static_cast<size_t>(rounded), MADV_HUGEPAGE);
#endif
    return data;
}

void system_free(void* data)
{
    finish_all();  // a freed block may still be an operand
    std::free(data);
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
