// What kernels over strided operands share: dtype dispatch, and vectors of lanes that lie a stride
// apart. The stride is a run-time value: the branch on it is the same for a whole row, so one loop
// serves the contiguous layout at full speed and every other layout correctly.
#pragma once

#include <cstdint>

#include "call.h"
#include "simd.h"

namespace needle::NEEDLE_TARGET {

inline int64_t element_count(const Array& array)
{
    int64_t n = 1;
    for (int i = 0; i < array.rank; ++i) n *= array.shape[i];
    return n;
}

// Calls body with a value of the floating-point type that `dtype` names.
template <class Body>
inline void with_float(DType dtype, const Body& body)
{
    if (dtype == DType::float32)
        body(float{});
    else
        body(double{});
}

// The first n lanes, 0 < n <= lanes, are p[0], p[stride], ...; the others are zero.
template <class T>
inline Vec<T> load_lanes(const T* p, int64_t stride, int64_t n)
{
    if (stride == 1) return n == lanes<T> ? load(p) : load_first(p, n);
    T values[lanes<T>] = {};
    for (int64_t i = 0; i < n; ++i) values[i] = p[i * stride];
    return load(values);
}

template <class T>
inline void store_lanes(T* p, int64_t stride, Vec<T> v, int64_t n)
{
    if (stride == 1) {
        if (n == lanes<T>)
            store(p, v);
        else
            store_first(p, v, n);
        return;
    }
    T values[lanes<T>];
    store(values, v);
    for (int64_t i = 0; i < n; ++i) p[i * stride] = values[i];
}

}  // namespace needle::NEEDLE_TARGET
