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

// The first n lanes of v; the others become `rest`.
template <class T>
inline Vec<T> keep_first(Vec<T> v, int64_t n, T rest)
{
    Vec<Bits<T>> index;
    for (int i = 0; i < lanes<T>; ++i) index[i] = i;
    return index < static_cast<Bits<T>>(n) ? v : broadcast(rest);
}

// The sum of term(i, n) over the vectors that start at i = 0, lanes, 2 lanes, ... of `count` elements,
// the last with n < lanes elements. Four sums, so that additions need not wait for one another.
template <class T, class Term>
inline T sum_along(int64_t count, const Term& term)
{
    constexpr int64_t width = lanes<T>;
    Vec<T> a{}, b{}, c{}, d{};
    int64_t i = 0;
    for (; i + 4 * width <= count; i += 4 * width) {
        a += term(i, width);
        b += term(i + width, width);
        c += term(i + 2 * width, width);
        d += term(i + 3 * width, width);
    }
    for (; i + width <= count; i += width) a += term(i, width);
    if (i < count) b += keep_first(term(i, count - i), count - i, T(0));
    return sum_lanes<T>((a + b) + (c + d));
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
