// What kernels over strided operands share: dtype dispatch, and vectors of lanes that lie a stride
// apart. The stride is a run-time value: the branch on it is the same for a whole row, so one loop
// serves the contiguous layout at full speed and every other layout correctly.
#pragma once

#include <cstdint>

#include "caches.h"
#include "call.h"
#include "simd.h"

namespace needle::NEEDLE_TARGET {

// Calls body with a value of the floating-point type that `dtype` names.
template <class Body>
inline void with_float(DType dtype, const Body& body)
{
    if (dtype == DType::float32)
        body(float{});
    else
        body(double{});
}

// Whether an array is more than the caches keep, and every run of its last axis aligned, so that
// stream_store may write it.
template <class T>
inline bool may_stream(const Array& out)
{
    bool aligned = true;
    for (int axis = 0; axis < out.rank - 1; ++axis)
        aligned = aligned && rows_are_aligned(out.as<T>(), out.strides[axis]);
    return aligned && out.size() * static_cast<int64_t>(sizeof(T)) >= beyond_caches;
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

// Elements that lie a stride apart, read and written as vectors.
template <class T>
struct Line {
    T* data;
    int64_t stride;

    Vec<T> load(int64_t i, int64_t n) const { return load_lanes(data + i * stride, stride, n); }
    void store(int64_t i, int64_t n, Vec<T> v) const
    {
        store_lanes(data + i * stride, stride, v, n);
    }
    T& operator[](int64_t i) const { return data[i * stride]; }
};

// The same line, whose stride the compiler knows to be 1 where `dense`.
template <bool dense, class T>
inline Line<T> known(Line<T> line)
{
    return {line.data, dense ? 1 : line.stride};
}

// Row r of a matrix, from the element `first` on.
template <class T>
inline Line<T> row_of(const Array& matrix, int64_t r, int64_t first = 0)
{
    return {matrix.as<T>() + r * matrix.strides[0] + first * matrix.strides[1], matrix.strides[1]};
}

template <class T>
inline Line<T> vector_of(const Array& array)
{
    return {array.as<T>(), array.strides[0]};
}

// The first n lanes of v; the others become `rest`.
template <class T>
inline Vec<T> keep_first(Vec<T> v, int64_t n, T rest)
{
    Vec<Bits<T>> index;
    for (int i = 0; i < lanes<T>; ++i) index[i] = i;
    return index < static_cast<Bits<T>>(n) ? v : broadcast(rest);
}

// The sum of term(i, n) over the vectors of [begin, end), the last with n < lanes elements. Four
// sums, so that additions need not wait for one another.
template <class T, class Term>
inline T sum_between(int64_t begin, int64_t end, const Term& term)
{
    constexpr int64_t width = lanes<T>;
    Vec<T> sums[4] = {};
    int64_t i = begin;
    for (; i + 4 * width <= end; i += 4 * width) {
#pragma GCC unroll 4
        for (int k = 0; k < 4; ++k) sums[k] += term(i + k * width, width);
    }
    for (; i < end; i += width) {
        int64_t n = end - i < width ? end - i : width;
        sums[0] += keep_first(term(i, n), n, T(0));
    }
    return sum_lanes<T>((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

// The same over `count` elements: sums of 4096, short enough to be accurate in float, added in
// float64.
template <class T, class Term>
inline double sum_along(int64_t count, const Term& term)
{
    constexpr int64_t block = 4096;
    double sum = 0;
    for (int64_t i = 0; i < count; i += block)
        sum += static_cast<double>(sum_between<T>(i, count - i < block ? count : i + block, term));
    return sum;
}

// Calls body(i, n) for the vectors of `count` elements, the last with n < lanes elements.
template <class T, class Body>
inline void for_vectors(int64_t count, const Body& body)
{
    constexpr int64_t width = lanes<T>;
    int64_t i = 0;
    for (; i + width <= count; i += width) body(i, width);
    if (i < count) body(i, count - i);
}

}  // namespace needle::NEEDLE_TARGET
