// The record that every kernel takes.
#pragma once

#include <cstdint>

// A function of a header that the targets share: inlined always, so that the linker cannot keep the
// copy of a target that this processor lacks.
#define NEEDLE_INLINE [[gnu::always_inline]] inline

namespace needle {

constexpr int max_rank = 16;

enum class DType : int32_t { float32, float64, int32, int64, uint8, boolean };

NEEDLE_INLINE int64_t item_size(DType dtype)
{
    switch (dtype) {
        case DType::float64:
        case DType::int64: return 8;
        case DType::float32:
        case DType::int32: return 4;
        default: return 1;
    }
}

class Storage;

// A strided view of memory that the kernel does not own. Strides count elements; `data` already
// includes the view's offset. An absent optional operand has `data == nullptr`.
struct Array {
    void* data;
    DType dtype;
    int32_t rank;
    int64_t shape[max_rank];
    int64_t strides[max_rank];
    bool immediate = false;  // a number of the call: `data` is the host's memory on every device
    Storage* storage = nullptr;  // whose memory it is: for the launch point, not for kernels

    template <class T>
    NEEDLE_INLINE T* as() const
    {
        return static_cast<T*>(data);
    }

    NEEDLE_INLINE int64_t size() const
    {
        int64_t n = 1;
        for (int i = 0; i < rank; ++i) n *= shape[i];
        return n;
    }
};

// One call of one kernel. Outputs come first in `arrays`; the table in docs/architecture.md gives
// the order. The front end has checked shapes, dtypes and indices: kernels check nothing.
struct Call {
    const Array* arrays;
    int count;
    const double* scalars;
    int scalar_count;
    void* workspace;  // as many bytes as the kernel's workspace function asked for
    void* stream;     // of the device; nullptr on the CPU
    int kernel;       // which entry of the table this call is for
};

}  // namespace needle
