#include "graph.h"

#include "../kernels.h"

namespace needle::cuda {

namespace {

Graph* current = nullptr;  // the one that is being recorded

}  // namespace

Graph::~Graph()
{
    if (current == this) cancel();
    kernels_.reset();
    for (double* slot : slots_) memory_->give(slot);
    memory_->close();
}

void Graph::begin()
{
    begin_capture();
    current = this;
    allocate_from(memory_);
}

void Graph::end()
{
    current = nullptr;
    allocate_from(nullptr);
    kernels_ = end_capture();
}

void Graph::cancel()
{
    try {
        end();
    } catch (const Error&) {  // of a capture that is not wanted any more
    }
    kernels_.reset();
}

void Graph::replay()
{
    check_not_capturing("a replay");
    kernels_->run();
}

double* Graph::add_slot(int count)
{
    auto* slot = static_cast<double*>(memory_->take_fresh(count * int64_t(sizeof(double))));
    if (slot == nullptr) throw OutOfMemory(CudaBackend().out_of_memory(count * 8));
    slots_.push_back(slot);
    return slot;
}

void Graph::set_scalars(int slot, const std::vector<double>& values)
{
    check_not_capturing("a replay");
    write_scalars(slots_.at(static_cast<size_t>(slot)), values.data(),
                  static_cast<int>(values.size()));
}

const double* live_scalars(const Call& call, bool changing)
{
    if (current == nullptr) return nullptr;
    if (current->live) return current->add_slot(call.scalar_count);
    if (changing)
        throw Error(std::string(kernel_names[call.kernel]) +
                    ": cannot be recorded as it is: got a step number, the same in every replay: "
                    "use an optimizer of needle.optim, which counts replays");
    return nullptr;
}

}  // namespace needle::cuda
