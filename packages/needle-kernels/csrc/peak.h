// What this machine reaches at best: the ceiling that a profile compares kernels with.
#pragma once

#include <cstdint>

namespace needle {

struct Peak {
    double flops32, flops64;  // additions and multiplications per second, in float32 and float64
    double bytes;             // per second, read and written
};

// The loops that a CPU target is measured with; peak_loops.cpp.
struct PeakLoops {
    double (*multiply_add32)(int64_t rounds);  // returns how many operations it did
    double (*multiply_add64)(int64_t rounds);
    double (*triad)(float* a, const float* b, const float* c, int64_t n);  // bytes moved
};

// Runs for some 0.2 s on num_threads() threads. Throws std::bad_alloc without 192 MiB of memory.
Peak measure_peak(const PeakLoops& loops);

}  // namespace needle
