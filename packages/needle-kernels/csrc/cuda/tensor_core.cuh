// One step of a tensor core in TF32: float32's range with 10 bits of mantissa. From Ampere on.
#pragma once

#include "device.cuh"

namespace needle::cuda {

// A warp's 16 x 8 piece of C. With group = lane / 4 and t = lane % 4 a lane has
//     at[0], at[1]: row group, columns 2 t and 2 t + 1        at[2], at[3]: row group + 8, the same
// of A (16 x 8) a[0..3]: (group, t), (group + 8, t), (group, t + 4), (group + 8, t + 4)
// of B (8 x 8)  b[0..1]: (t, group), (t + 4, group)
// Source: PTX ISA, "Matrix Fragments for mma.m16n8k8", .tf32.
struct Fragment {
    float at[4];
};

// To the nearest number with 10 bits of mantissa, ties away from zero: an error of at most 2^-11.
__device__ __forceinline__ uint32_t round_to_tf32(float x)
{
#ifdef NEEDLE_CUDA_EMULATE
    return emulation::round_to_tf32(x);
#elif __CUDA_ARCH__ >= 800
    uint32_t bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
    return bits;
#else
    return __float_as_uint(x);  // no kernel that gets here is launched
#endif
}

// c += a b, all lanes together.
__device__ __forceinline__ void multiply_add_tf32(Fragment& c, const uint32_t (&a)[4],
                                                  const uint32_t (&b)[2])
{
#ifdef NEEDLE_CUDA_EMULATE
    emulation::multiply_add_tf32(c.at, a, b);
#elif __CUDA_ARCH__ >= 800
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c.at[0]), "+f"(c.at[1]), "+f"(c.at[2]), "+f"(c.at[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    c.at[0] += __uint_as_float(a[0] & b[0] & 0u);
#endif
}

}  // namespace needle::cuda
