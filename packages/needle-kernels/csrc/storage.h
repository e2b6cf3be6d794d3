// Memory: a caching allocator, and the Storage that an NDArray's views share.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "call.h"

namespace needle {

const char* dtype_name(DType dtype);  // as NumPy has it

struct MemoryStats {
    int64_t in_use;              // bytes handed out now
    int64_t held;                // bytes taken from the system now: in use and cached
    int64_t peak;                // the most bytes in use since reset_peak()
    int64_t allocations;         // blocks handed out so far
    int64_t system_allocations;  // of those, how many the system had to give
    int64_t limit;               // bytes that `held` may reach; 0: no limit
};

// Every block is aligned to 64 bytes (2 MB from 2 MB on). Freed blocks are kept by size class and
// handed out again, so a training loop stops asking the system for memory after its first step.
// Returns nullptr when the system, or the limit, does not allow `bytes` more.
void* allocate(int64_t bytes);
void release(void* data, int64_t bytes);
void empty_cache();
void set_memory_limit(int64_t bytes);
// Off: every block comes from the system and returns to it (for sanitizers).
void set_pooling(bool on);
MemoryStats memory_stats();
void reset_peak();

class Storage {
public:
    // Throws OutOfMemory.
    Storage(int64_t size, DType dtype);
    // Memory that `owner` keeps alive.
    Storage(void* data, int64_t size, DType dtype, std::shared_ptr<void> owner);
    ~Storage();
    Storage(const Storage&) = delete;
    Storage& operator=(const Storage&) = delete;

    void* data() const { return data_; }
    int64_t size() const { return size_; }
    DType dtype() const { return dtype_; }
    int64_t bytes() const { return size_ * item_size(dtype_); }

    int64_t version = 0;                 // counts the in-place writes
    std::atomic<uint64_t> last_call{0};  // the queued call that was given this memory last
    std::atomic<bool> shared{false};     // whether somebody outside sees the memory

private:
    void* data_;
    int64_t size_;
    DType dtype_;
    std::shared_ptr<void> owner_;  // null: the memory is the allocator's
};

}  // namespace needle
