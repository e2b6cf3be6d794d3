// exp, log, tanh and sigmoid on vectors of lanes, for float and double.
//
// Error bounds in units in the last place of the exact result, for float and double alike, found on
// dense samples of all bit patterns (tests/test_kernels_cpp_elementwise.py samples again):
//
//     exp 1.1, log 0.9, tanh 2.6, sigmoid 2.4
//
// The bounds hold with and without fused multiply-add and for subnormal results. Infinities, NaN,
// zeros and their signs, overflow and underflow give what IEEE 754 and NumPy give: exp(-inf) = 0,
// log(0) = -inf, log(-1) = NaN, tanh(-0.0) = -0.0, tanh(inf) = 1.
#pragma once

#include "simd.h"

namespace needle::NEEDLE_TARGET {

namespace math {

template <class T>
struct Constants;

template <>
struct Constants<float> {
    static constexpr int fraction_bits = 23;
    static constexpr uint32_t bias = 127;
    static constexpr float log2e = 1.44269504f;
    // ln 2 in two parts; the first has so few bits that a product with an exponent is exact.
    static constexpr float ln2_high = 0.693145751953125f;
    static constexpr float ln2_low = 1.42860677e-6f;
    static constexpr float exp_max = 89.0f;     // exp overflows below this
    static constexpr float exp_min = -104.0f;   // exp rounds to zero above this
    static constexpr float expm1_min = -20.0f;  // expm1 rounds to -1 above this
    static constexpr float smallest_normal = 1.17549435e-38f;
    static constexpr uint32_t sqrt_half_bits = 0x3f3504f3;
    static constexpr float infinity = __builtin_inff();
    // (exp(r) - 1 - r) / r^2 for |r| <= ln 2 / 2: minimax polynomial, relative error of exp(r) - 1
    // below 2e-8.
    static constexpr float exp_tail[] = {5.00000006208e-1f, 1.66665427942e-1f, 4.16662813996e-2f,
                                         8.36661059026e-3f, 1.39464970998e-3f};
    // (log(1 + s) - log(1 - s)) / s - 2 in powers of s^2, s = f / (2 + f). Source: musl logf.c.
    static constexpr float log_tail[] = {6.66666626930e-1f, 4.00009721518e-1f, 2.84987866879e-1f,
                                         2.42790788412e-1f};
};

template <>
struct Constants<double> {
    static constexpr int fraction_bits = 52;
    static constexpr uint64_t bias = 1023;
    static constexpr double log2e = 1.44269504088896340736;
    static constexpr double ln2_high = 6.93147180369123816490e-01;
    static constexpr double ln2_low = 1.90821492927058770002e-10;
    static constexpr double exp_max = 710.0;
    static constexpr double exp_min = -746.0;
    static constexpr double expm1_min = -40.0;
    static constexpr double smallest_normal = 2.2250738585072014e-308;
    static constexpr uint64_t sqrt_half_bits = 0x3fe6a09e667f3bcd;
    static constexpr double infinity = __builtin_inf();
    // As for float; error below 4e-17.
    static constexpr double exp_tail[] = {0.5000000000000010265,    0.16666666666666674561,
                                          0.04166666666652153133,   0.0083333333333221716312,
                                          0.0013888888947961329092, 0.00019841269886699926183,
                                          2.4801487167120322116e-5, 2.7557242213510690926e-6,
                                          2.7632715652164152819e-7, 2.511009630403348889e-8};
    // Source: fdlibm e_log.c.
    static constexpr double log_tail[] = {6.666666666666735130e-01, 3.999999999940941908e-01,
                                          2.857142874366239149e-01, 2.222219843214978396e-01,
                                          1.818357216161805012e-01, 1.531383769920937332e-01,
                                          1.479819860511658591e-01};
};

// The bit pattern of T: unsigned, since that of NaN or of a negative number may overflow.
template <class T>
struct WordOf;
template <>
struct WordOf<float> {
    using type = uint32_t;
};
template <>
struct WordOf<double> {
    using type = uint64_t;
};
template <class T>
using Word = typename WordOf<T>::type;

template <class T>
inline Vec<Word<T>> bits_of(Vec<T> x)
{
    return (Vec<Word<T>>)x;
}

// Horner's rule, unrolled: c[0] + c[1] x + ... + c[N-1] x^(N-1).
template <class T, int N>
inline Vec<T> polynomial(Vec<T> x, const T (&c)[N])
{
    Vec<T> sum = broadcast(c[N - 1]);
#pragma GCC unroll 16
    for (int i = N - 2; i >= 0; --i) sum = sum * x + c[i];
    return sum;
}

// Adding this and taking it away rounds to an integer, whose two's complement then stands in the
// low bits of the sum.
template <class T>
constexpr T round_shift = T(3) * T(Word<T>{1} << (Constants<T>::fraction_bits - 1));

// 2^n for a vector that holds n + round_shift, n from 1 - bias to bias.
template <class T>
inline Vec<T> power_of_two(Vec<T> shifted)
{
    using C = Constants<T>;
    return (Vec<T>)((bits_of<T>(shifted) + C::bias) << C::fraction_bits);
}

// x = n ln 2 + r with |r| <= ln 2 / 2.
template <class T>
struct Reduced {
    Vec<T> n;
    Vec<T> r;
};

template <class T>
inline Reduced<T> reduce_by_ln2(Vec<T> x)
{
    using C = Constants<T>;
    Vec<T> n = (x * C::log2e + round_shift<T>)-round_shift<T>;
    Vec<T> r = (x - n * C::ln2_high) - n * C::ln2_low;
    return {n, r};
}

// exp(r) - 1 for |r| <= ln 2 / 2.
template <class T>
inline Vec<T> expm1_reduced(Vec<T> r)
{
    return r + r * r * polynomial<T>(r, Constants<T>::exp_tail);
}

// y * 2^n, rounded once also where the result is subnormal or overflows.
template <class T>
inline Vec<T> scale(Vec<T> y, Vec<T> n)
{
#if defined(__AVX512F__)
    // The masked form, since gcc warns about its own definition of the plain one.
    if constexpr (sizeof(T) == 4)
        return (Vec<T>)_mm512_maskz_scalef_ps(0xffff, (__m512)y, (__m512)n);
    else
        return (Vec<T>)_mm512_maskz_scalef_pd(0xff, (__m512d)y, (__m512d)n);
#else
    Vec<T> half = (n * T(0.5) + round_shift<T>)-round_shift<T>;
    Vec<T> rest = n - half;
    return y * power_of_two<T>(half + round_shift<T>) * power_of_two<T>(rest + round_shift<T>);
#endif
}

// exp(x) - 1 for x <= 0.
template <class T>
inline Vec<T> expm1_of_negative(Vec<T> x)
{
    using C = Constants<T>;
    x = at_least<T>(x, broadcast(C::expm1_min));
    Reduced<T> part = reduce_by_ln2<T>(x);
    Vec<T> power = power_of_two<T>(part.n + round_shift<T>);
    return (power - T(1)) + power * expm1_reduced<T>(part.r);
}

template <class T>
inline Vec<T> absolute(Vec<T> x)
{
    return (Vec<T>)(bits_of<T>(x) & ~bits_of<T>(broadcast(T(-0.0))));
}

template <class T>
inline Vec<T> with_sign_of(Vec<T> magnitude, Vec<T> sign)
{
    return (Vec<T>)(bits_of<T>(magnitude) | (bits_of<T>(sign) & bits_of<T>(broadcast(T(-0.0)))));
}

}  // namespace math

template <class T>
inline Vec<T> vexp(Vec<T> x)
{
    using C = math::Constants<T>;
    x = at_least<T>(at_most<T>(x, broadcast(C::exp_max)), broadcast(C::exp_min));
    math::Reduced<T> part = math::reduce_by_ln2<T>(x);
    return math::scale<T>(math::expm1_reduced<T>(part.r) + T(1), part.n);
}

// log of x = 2^k (1 + f) with sqrt(1/2) <= 1 + f < sqrt(2). Source: fdlibm e_log.c.
template <class T>
inline Vec<T> vlog(Vec<T> x)
{
    using C = math::Constants<T>;
    using Word = math::Word<T>;
    constexpr Word one_bits = Word(C::bias) << C::fraction_bits;
    // k + 2^fraction_bits is assembled from bits, which no instruction set lacks.
    constexpr T k_shift = T(Word{1} << C::fraction_bits);
    const Word k_shift_bits = Word(C::bias + C::fraction_bits) << C::fraction_bits;

    auto subnormal = x < C::smallest_normal;
    Vec<T> normal = subnormal ? x * k_shift : x;
    auto biased = (math::bits_of<T>(normal) - C::sqrt_half_bits + one_bits) >> C::fraction_bits;
    Vec<T> m = (Vec<T>)(math::bits_of<T>(normal) - ((biased - C::bias) << C::fraction_bits));
    Vec<T> k = (Vec<T>)(biased | k_shift_bits) - (k_shift + T(C::bias));
    k = subnormal ? k - T(C::fraction_bits) : k;

    Vec<T> f = m - T(1);
    Vec<T> s = f / (f + T(2));
    Vec<T> z = s * s;
    Vec<T> tail = z * math::polynomial<T>(z, C::log_tail);
    Vec<T> half_square = T(0.5) * f * f;
    Vec<T> result =
        k * C::ln2_high - ((half_square - (s * (half_square + tail) + k * C::ln2_low)) - f);

    result = ((x == C::infinity) | (x != x)) ? x : result;
    result = x == T(0) ? broadcast(-C::infinity) : result;
    return x < T(0) ? broadcast(T(__builtin_nan(""))) : result;
}

// With t = exp(-2|x|) - 1: tanh |x| = -t / (t + 2).
template <class T>
inline Vec<T> vtanh(Vec<T> x)
{
    Vec<T> t = math::expm1_of_negative<T>(T(-2) * math::absolute<T>(x));
    return math::with_sign_of<T>(math::absolute<T>(t / (t + T(2))), x);
}

// exp of -|x| only, so nothing overflows: 1 / (1 + e) for x >= 0, e / (1 + e) below.
template <class T>
inline Vec<T> vsigmoid(Vec<T> x)
{
    Vec<T> e = vexp<T>(-math::absolute<T>(x));
    Vec<T> numerator = x < T(0) ? e : broadcast(T(1));
    return numerator / (e + T(1));
}

}  // namespace needle::NEEDLE_TARGET
