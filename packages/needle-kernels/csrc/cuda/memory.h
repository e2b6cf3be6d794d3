// The device's memory: the caching allocator, and the share of it that a recorded graph keeps.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "../allocator.h"
#include "../launch.h"

namespace needle::cuda {

CachingAllocator& allocator();

// Blocks that a graph's kernels use. Every replay writes them, so a block that is freed is handed
// out again within the same recording only, and goes back to the allocator when the graph is gone.
class GraphMemory {
public:
    void* take(int64_t bytes);
    // A block that no kernel of the graph has used: what is written before a replay stays there.
    void* take_fresh(int64_t bytes);
    void give(void* data);
    // The graph is gone: what is free goes back now, what arrays still hold when they die.
    void close();
    bool owns(void* data);

private:
    void* add_block(int64_t block);  // holds mutex_

    std::mutex mutex_;
    std::unordered_map<void*, int64_t> blocks_;  // all of them, with their sizes
    std::unordered_map<int64_t, std::vector<void*>> free_;
    bool closed_ = false;
};

// From now on allocate() takes from `memory`; null: from the allocator.
void allocate_from(std::shared_ptr<GraphMemory> memory);

class CudaBackend : public Backend {
public:
    void* allocate(int64_t bytes) override;
    void release(void* data, int64_t bytes) override;
    void* stream() override;
    std::string out_of_memory(int64_t bytes) override;
};

}  // namespace needle::cuda
