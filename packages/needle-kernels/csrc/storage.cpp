#include "storage.h"

#include <cstdlib>
#include <mutex>
#include <new>
#include <unordered_map>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace needle {

int64_t item_size(DType dtype)
{
    switch (dtype) {
        case DType::float64:
        case DType::int64: return 8;
        case DType::float32:
        case DType::int32: return 4;
        default: return 1;
    }
}

namespace {

constexpr int64_t cache_line = 64;
constexpr int64_t huge_page = int64_t{2} << 20;

// The block size that serves a request: a multiple of 64 bytes up to 1 KB, then eight classes per
// doubling, so at most an eighth is wasted and a freed block fits the next request of about its
// size.
int64_t size_class(int64_t bytes)
{
    if (bytes < cache_line) return cache_line;
    int64_t step = cache_line;
    while (step * 16 < bytes) step *= 2;
    return (bytes + step - 1) / step * step;
}

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

class Allocator {
public:
    void* take(int64_t bytes)
    {
        std::lock_guard<std::mutex> lock(mutex_);
        int64_t block = size_class(bytes);
        void* data = nullptr;
        auto& cached = cache_[block];
        if (!cached.empty()) {
            data = cached.back();
            cached.pop_back();
        } else {
            if (stats_.limit > 0 && stats_.held + block > stats_.limit) drop_cache();
            if (stats_.limit > 0 && stats_.held + block > stats_.limit) return nullptr;
            data = system_allocate(block);
            if (data == nullptr) {
                drop_cache();
                data = system_allocate(block);
            }
            if (data == nullptr) return nullptr;
            stats_.held += block;
            ++stats_.system_allocations;
        }
        ++stats_.allocations;
        stats_.in_use += block;
        if (stats_.in_use > stats_.peak) stats_.peak = stats_.in_use;
        return data;
    }

    void give(void* data, int64_t bytes)
    {
        std::lock_guard<std::mutex> lock(mutex_);
        int64_t block = size_class(bytes);
        stats_.in_use -= block;
        if (pooling_) {
            cache_[block].push_back(data);
        } else {
            std::free(data);
            stats_.held -= block;
        }
    }

    void empty()
    {
        std::lock_guard<std::mutex> lock(mutex_);
        drop_cache();
    }

    void set_limit(int64_t bytes)
    {
        std::lock_guard<std::mutex> lock(mutex_);
        stats_.limit = bytes;
    }

    void set_pooling(bool on)
    {
        std::lock_guard<std::mutex> lock(mutex_);
        pooling_ = on;
        if (!on) drop_cache();
    }

    MemoryStats stats()
    {
        std::lock_guard<std::mutex> lock(mutex_);
        return stats_;
    }

    void reset_peak()
    {
        std::lock_guard<std::mutex> lock(mutex_);
        stats_.peak = stats_.in_use;
    }

private:
    void drop_cache()  // holds mutex_
    {
        for (auto& [block, cached] : cache_) {
            for (void* data : cached) std::free(data);
            stats_.held -= block * static_cast<int64_t>(cached.size());
            cached.clear();
        }
    }

    std::mutex mutex_;
    std::unordered_map<int64_t, std::vector<void*>> cache_;
    MemoryStats stats_{};
    bool pooling_ = std::getenv("NEEDLE_NO_POOL") == nullptr;
};

// Never destroyed: arrays that outlive the interpreter's shutdown may still be freed.
Allocator& allocator()
{
    static Allocator* instance = new Allocator;
    return *instance;
}

}  // namespace

void* allocate(int64_t bytes) { return allocator().take(bytes); }
void release(void* data, int64_t bytes) { allocator().give(data, bytes); }
void empty_cache() { allocator().empty(); }
void set_memory_limit(int64_t bytes) { allocator().set_limit(bytes); }
void set_pooling(bool on) { allocator().set_pooling(on); }
MemoryStats memory_stats() { return allocator().stats(); }
void reset_peak() { allocator().reset_peak(); }

Storage::Storage(int64_t size, DType dtype) : data_(nullptr), size_(size), dtype_(dtype)
{
    data_ = allocate(bytes());
    if (data_ == nullptr) throw std::bad_alloc();
}

Storage::Storage(void* data, int64_t size, DType dtype, std::shared_ptr<void> owner)
    : data_(data), size_(size), dtype_(dtype), owner_(std::move(owner))
{
}

Storage::~Storage()
{
    if (owner_ == nullptr) release(data_, bytes());
}

}  // namespace needle
