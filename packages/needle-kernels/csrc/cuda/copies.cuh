// Copies from global to shared memory that a thread starts and waits for later (cp.async, from
// Ampere on; before, they are done at once).
#pragma once

#include "device.cuh"

namespace needle::cuda {

// shared[0..3] = the first `count` of global[0..3], and zeros. Both are 16-byte aligned.
__device__ __forceinline__ void copy_async(float* shared, const float* global, int count)
{
#ifdef NEEDLE_CUDA_EMULATE
    emulation::copy_later(shared, global, count);
#elif __CUDA_ARCH__ >= 800
    unsigned target = static_cast<unsigned>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(target), "l"(global),
                 "r"(count * 4)
                 : "memory");
#else
    float4 v = make_float4(0, 0, 0, 0);
    if (count == 4) {
        v = *reinterpret_cast<const float4*>(global);
    } else {
        if (count > 0) v.x = global[0];
        if (count > 1) v.y = global[1];
        if (count > 2) v.z = global[2];
    }
    *reinterpret_cast<float4*>(shared) = v;
#endif
}

// What this thread has started since the last group is a group.
__device__ __forceinline__ void end_copy_group()
{
#ifdef NEEDLE_CUDA_EMULATE
    emulation::end_copy_group();
#elif __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Until at most `groups` of this thread's groups, the latest, are under way.
template <int groups>
__device__ __forceinline__ void wait_for_copies()
{
#ifdef NEEDLE_CUDA_EMULATE
    emulation::wait_for_copies(groups);
#elif __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(groups) : "memory");
#endif
}

}  // namespace needle::cuda
