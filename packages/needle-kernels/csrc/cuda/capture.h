// The half of a capture that differs between a GPU and its emulation (runtime.cu,
// runtime_emulated.cpp).
#pragma once

#include <memory>

#include "runtime.h"

namespace needle::cuda {

void start_capture();
std::unique_ptr<Executable> finish_capture();

}  // namespace needle::cuda
