// Keeps freed blocks by size class and hands them out again: of the CPU's memory or a GPU's.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "storage.h"

namespace needle {

constexpr int64_t most_bytes = int64_t{1} << 62;  // of a request: no system has them

// The block size that serves a request: a multiple of 64 bytes up to 1 KB, then eight classes per
// doubling, so at most an eighth is wasted and a freed block fits the next request of about its
// size.
inline int64_t size_class(int64_t bytes)
{
    constexpr int64_t smallest = 64;
    if (bytes < smallest) return smallest;
    if (bytes > most_bytes) return bytes;
    int64_t step = smallest;
    while (step * 16 < bytes) step *= 2;
    return (bytes + step - 1) / step * step;
}

class CachingAllocator {
public:
    // `system_allocate` returns nullptr when the system has no memory left.
    CachingAllocator(void* (*system_allocate)(int64_t), void (*system_free)(void*, int64_t))
        : system_allocate_(system_allocate), system_free_(system_free)
    {
    }

    // nullptr when there is none left.
    void* take(int64_t bytes)
    {
        if (bytes > most_bytes) return nullptr;
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
            data = system_allocate_(block);
            if (data == nullptr) {
                drop_cache();
                data = system_allocate_(block);
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
            system_free_(data, block);
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

    // Around a fork: no other thread is inside meanwhile, which a child would wait for in vain.
    void lock() { mutex_.lock(); }
    void unlock() { mutex_.unlock(); }

private:
    void drop_cache()  // holds mutex_
    {
        for (auto& [block, cached] : cache_) {
            for (void* data : cached) system_free_(data, block);
            stats_.held -= block * static_cast<int64_t>(cached.size());
            cached.clear();
        }
    }

    void* (*system_allocate_)(int64_t);
    void (*system_free_)(void*, int64_t);
    std::mutex mutex_;
    std::unordered_map<int64_t, std::vector<void*>> cache_;
    MemoryStats stats_{};
    bool pooling_ = std::getenv("NEEDLE_NO_POOL") == nullptr;
};

}  // namespace needle
