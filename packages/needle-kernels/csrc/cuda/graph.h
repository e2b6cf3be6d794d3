// A recorded step: its kernels, the memory they use, and the scalars that change between replays.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "../call.h"
#include "memory.h"
#include "runtime.h"

namespace needle::cuda {

class Graph {
public:
    Graph() = default;
    ~Graph();
    Graph(const Graph&) = delete;
    Graph& operator=(const Graph&) = delete;

    // Between the two, kernels are recorded and not run.
    void begin();
    void end();
    void cancel();  // forgets what was recorded

    void replay();
    bool owns(uintptr_t data) { return memory_->owns(reinterpret_cast<void*>(data)); }

    // A kernel's scalars are recorded by value. Those of an optimizer's step change with each step:
    // while `live` is set, its kernels read them from a slot of the device's memory instead, which
    // set_scalars() writes.
    bool live = false;
    int slots() const { return static_cast<int>(slots_.size()); }
    void set_scalars(int slot, const std::vector<double>& values);
    double* add_slot(int count);

private:
    std::shared_ptr<GraphMemory> memory_ = std::make_shared<GraphMemory>();
    std::unique_ptr<Executable> kernels_;
    std::vector<double*> slots_;
};

constexpr int most_live_scalars = 8;

// Where a kernel that is being recorded finds its scalars on the device; nullptr: they are in
// `call`. Throws Error where `changing` scalars would be recorded as they are now.
const double* live_scalars(const Call& call, bool changing);

// target[i] = values[i], in the stream's order (optimize.cu).
void write_scalars(double* target, const double* values, int count);

}  // namespace needle::cuda
