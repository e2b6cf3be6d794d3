// Ids that kernels check themselves: the host would have to wait for the device to see them.
#pragma once

#include "device.cuh"
#include "fault.h"

namespace needle::cuda {

// A vector of ids, each to be in [0, limit). One that is not becomes -1, which no kernel follows,
// and is kept for the host, which raises IndexError when it next waits for the device.
struct Ids {
    const int64_t* data;
    int64_t stride, limit;
    int kernel;
    Fault* fault;

    Ids(const Call& call, const Array& a, int64_t limit)
        : data(a.as<int64_t>()),
          stride(a.strides[0]),
          limit(limit),
          kernel(call.kernel),
          fault(device_fault())
    {
    }

    __device__ int64_t operator[](int64_t row) const
    {
        int64_t id = data[row * stride];
        if (static_cast<uint64_t>(id) < static_cast<uint64_t>(limit)) return id;
        if (atomicCAS(&fault->found, 0, 1) == 0) {  // the first; the others are forgotten
            fault->kernel = kernel;
            fault->id = id;
            fault->limit = limit;
        }
        return -1;
    }
};

// Threads for rows of so many columns: a block takes several short rows.
inline dim3 rows_of_threads(int64_t columns, unsigned threads)
{
    unsigned x = 1;
    while (x < warp && x < columns) x *= 2;
    return dim3(x, threads / x);
}

}  // namespace needle::cuda
