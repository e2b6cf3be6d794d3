// What sum, max and min do to two values, and to two vectors of them alike.
#pragma once

#include "simd.h"

namespace needle::NEEDLE_TARGET {

template <class T>
struct SumType {
    using type = T;
};
template <>
struct SumType<float> {
    using type = double;
};

template <class T>
constexpr T lowest;
template <>
constexpr float lowest<float> = -__builtin_inff();
template <>
constexpr double lowest<double> = -__builtin_inf();
template <>
constexpr int32_t lowest<int32_t> = INT32_MIN;
template <>
constexpr int64_t lowest<int64_t> = INT64_MIN;
template <>
constexpr uint8_t lowest<uint8_t> = 0;

template <class T>
constexpr T highest;
template <>
constexpr float highest<float> = __builtin_inff();
template <>
constexpr double highest<double> = __builtin_inf();
template <>
constexpr int32_t highest<int32_t> = INT32_MAX;
template <>
constexpr int64_t highest<int64_t> = INT64_MAX;
template <>
constexpr uint8_t highest<uint8_t> = UINT8_MAX;

// A vector of results taken together with those at p, side by side.
template <class Op, class T>
struct Taking {
    Vec<T> operator()(Vec<T> a, const T* p) const { return Op::apply(a, load(p)); }
};

struct Sum {
    static constexpr bool adds = true;
    template <class T>
    using Acc = typename SumType<T>::type;
    template <class T>
    static constexpr T identity = 0;
    template <class V>
    static V apply(V a, V b)
    {
        return a + b;
    }
};

template <>
struct Taking<Sum, float> {
    Vec<double> one = hidden_one();
    Vec<double> operator()(Vec<double> a, const float* p) const { return add_widened(a, p, one); }
};

// b where either is NaN.
template <class V>
inline V larger(V a, V b)
{
    return a > b ? a : b;
}
template <class V>
inline V smaller(V a, V b)
{
    return a < b ? a : b;
}
inline Vec<float> larger(Vec<float> a, Vec<float> b) { return at_least<float>(b, a); }
inline Vec<double> larger(Vec<double> a, Vec<double> b) { return at_least<double>(b, a); }
inline Vec<float> smaller(Vec<float> a, Vec<float> b) { return at_most<float>(b, a); }
inline Vec<double> smaller(Vec<double> a, Vec<double> b) { return at_most<double>(b, a); }

struct Max {
    static constexpr bool adds = false;
    template <class T>
    using Acc = T;
    template <class T>
    static constexpr T identity = lowest<T>;
    template <class V>
    static V apply(V a, V b)
    {
        V found = larger(b, a);
        return b == b ? found : b;  // NaN if either is; a, found so far, is not waited for
    }
};

struct Min {
    static constexpr bool adds = false;
    template <class T>
    using Acc = T;
    template <class T>
    static constexpr T identity = highest<T>;
    template <class V>
    static V apply(V a, V b)
    {
        V found = smaller(b, a);
        return b == b ? found : b;
    }
};

template <class T>
inline Vec<T> load_as(const T* p, T)
{
    return load(p);
}
inline Vec<double> load_as(const float* p, double) { return load_widened(p); }

// The first n lanes, 0 <= n <= lanes; the others are zero.
template <class T>
inline Vec<T> load_first_as(const T* p, int64_t n, T)
{
    return load_first(p, n);
}
inline Vec<double> load_first_as(const float* p, int64_t n, double)
{
    return load_widened_first(p, n);
}

}  // namespace needle::NEEDLE_TARGET
