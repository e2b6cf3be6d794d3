// What a kernel found wrong in its operands' values: an id out of range.
#pragma once

#include <cstdint>
#include <stdexcept>

namespace needle::cuda {

// Lies in memory of the host that the device can write: reading it takes no copy.
struct Fault {
    int found;  // 0: nothing is wrong
    int kernel;
    int64_t id, limit;
};

class IdError : public std::out_of_range {
public:
    using std::out_of_range::out_of_range;
};

// Where kernels report to.
Fault* device_fault();

// Throws IdError for the first wrong id since the last time. Only when no kernel runs.
void check_fault();

}  // namespace needle::cuda
