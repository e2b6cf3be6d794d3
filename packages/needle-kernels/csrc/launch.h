// The single launch point: every kernel of every device is entered here and nowhere else.
#pragma once

#include <cstdint>

#include "kernels.h"

namespace needle {

enum class Device : int { cpu, reference, count };

constexpr int device_count = static_cast<int>(Device::count);
inline constexpr const char* device_names[] = {"cpu", "reference"};

// The table that launch() uses for a device. Set before the first launch, and when the target
// changes.
Table& device_table(Device device);

// Throws std::bad_alloc when there is no memory for the kernel's workspace, std::invalid_argument
// when the device has no such kernel; nothing has been written then.
void launch(Device device, int kernel, Call& call);

// How often each kernel ran: always counted.
uint64_t call_count(Device device, int kernel);
void reset_call_counts();

}  // namespace needle
