// CUDA on the CPU, for tests on machines without a GPU: slow, deterministic, and strict.
//
// Blocks run one after the other; the threads of a block are fibers that run until they meet a
// barrier. A barrier that some threads of a block (or of a warp) can never reach ends the program
// with a message, where a GPU would hang or go on with garbage. What it cannot show: races between
// threads of different warps, the limits of a real device, and speed.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(16) double2 {
    double x, y;
};

namespace needle::emulation {

// The coordinates of the fiber that runs now.
extern dim3 thread_index, block_index, block_size, grid_size;

// Runs body once for each thread of each block.
void run_grid(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body);

// Calls `grid`, which runs a grid, or keeps it for the graph that is being captured.
void launch(std::function<void()> grid);

// Whether a launch keeps to the limits that every GPU has.
bool fits(dim3 grid, dim3 block, size_t shared_bytes);

void block_barrier();
void warp_barrier();
void* dynamic_shared();
int lane();

// cp.async: a thread's copies are made when it waits for them, so that what reads too early shows.
void copy_later(float* shared, const float* global, int count);
void end_copy_group();
void wait_for_copies(int groups);

// What a tensor core does in TF32; multiply_add: all lanes of the warp, with tensor_core.cuh's
// fragments. The core ignores the 13 bits that TF32 has not.
uint32_t round_to_tf32(float x);
void multiply_add_tf32(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

// Every lane of the warp gives 8 bytes and gets those of the lane `from` (its own, if none such).
uint64_t exchange(uint64_t bits, int from);

template <class T>
T shuffle(T value, int from)
{
    static_assert(sizeof(T) <= sizeof(uint64_t));
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof(T));
    bits = exchange(bits, from);
    std::memcpy(&value, &bits, sizeof(T));
    return value;
}

}  // namespace needle::emulation

#define threadIdx (::needle::emulation::thread_index)
#define blockIdx (::needle::emulation::block_index)
#define blockDim (::needle::emulation::block_size)
#define gridDim (::needle::emulation::grid_size)

constexpr int warpSize = 32;

inline void __syncthreads() { needle::emulation::block_barrier(); }
inline void __syncwarp(unsigned = 0xffffffffu) { needle::emulation::warp_barrier(); }

template <class T>
T __shfl_sync(unsigned, T value, int from)
{
    return needle::emulation::shuffle(value, from);
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask)
{
    return needle::emulation::shuffle(value, needle::emulation::lane() ^ mask);
}
template <class T>
T __shfl_down_sync(unsigned, T value, int delta)
{
    return needle::emulation::shuffle(value, needle::emulation::lane() + delta);
}
template <class T>
T __shfl_up_sync(unsigned, T value, int delta)
{
    return needle::emulation::shuffle(value, needle::emulation::lane() - delta);
}
inline unsigned __ballot_sync(unsigned, int predicate)
{
    unsigned votes = 0;
    for (int i = 0; i < warpSize; ++i)
        if (needle::emulation::shuffle(predicate, i) != 0) votes |= 1u << i;
    return votes;
}

inline int __ffs(int x) { return __builtin_ffs(x); }

template <class T>
T atomicAdd(T* place, T value)
{
    T before = *place;
    *place += value;
    return before;
}
template <class T>
T atomicCAS(T* place, T expected, T value)
{
    T before = *place;
    if (before == expected) *place = value;
    return before;
}
template <class T>
T atomicMax(T* place, T value)
{
    T before = *place;
    if (value > before) *place = value;
    return before;
}
template <class T>
T __ldg(const T* place)
{
    return *place;
}
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
