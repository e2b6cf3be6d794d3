// a^b on vectors, for positive a: 2^(b log2 a).
//
// The error of log2 a counts b times, so the logarithm has to be more exact than the result: of
// floats it is taken in double, of doubles in pairs of them. Floats are correctly rounded but for
// near ties. Doubles are off by at most 0.51 units in the last place, by up to 0.9 where |b| is in
// the thousands and a between 1 / sqrt(2) and sqrt(2), or where the result is subnormal.
#pragma once

#include "vmath.h"

namespace needle::NEEDLE_TARGET {

namespace math {

// a = 2^k m with sqrt(1/2) <= m < sqrt(2), of a normal a.
struct Scaled {
    Vec<double> k, m;
};

inline Scaled take_apart(Vec<double> a)
{
    using C = Constants<double>;
    // k + 2^52 is assembled from bits, which no instruction set lacks.
    constexpr double k_shift = double(uint64_t{1} << C::fraction_bits);
    const uint64_t k_shift_bits = (C::bias + C::fraction_bits) << C::fraction_bits;
    const uint64_t one_bits = C::bias << C::fraction_bits;
    auto bits = bits_of<double>(a);
    auto biased = (bits - C::sqrt_half_bits + one_bits) >> C::fraction_bits;
    return {(Vec<double>)(biased | k_shift_bits) - (k_shift + double(C::bias)),
            (Vec<double>)(bits - ((biased - C::bias) << C::fraction_bits))};
}

inline Vec<double> round_to_integer(Vec<double> x)
{
    return (x + round_shift<double>)-round_shift<double>;
}

}  // namespace math

// Whether vpower_of_floats can compute a^b: a is positive and finite, b finite.
inline bool is_ordinary(float a, float b) { return (a > 0) & (a - a == 0) & (b - b == 0); }

// a^b of ordinary floats, as doubles; elsewhere the result is arbitrary. Its error is below 2^-36.
// log2 m is a polynomial in s = (m - 1) / (m + 1).
inline Vec<double> vpower_of_floats(Vec<double> a, Vec<double> b)
{
    // Fits: (log2 m - 2 s log2 e) / s^3 in powers of s^2, error 2^-44; 2^r for |r| <= 1/2, 2^-40.
    constexpr double two_log2e = 2.8853900817779268;
    constexpr double log_tail[] = {0.9617966940578104, 0.5770779531755913, 0.41220840346423315,
                                   0.3199347155275403, 0.2825403607831518};
    constexpr double exp2[] = {
        0.9999999999997624,     0.6931471805465141,    0.2402265069888046,
        0.055504109393416046,   0.009618128542843902,  0.0013333452062333807,
        0.00015403851760679136, 1.530973740249716e-05, 1.3175855707844741e-06};
    constexpr double beyond_float = 1000;

    math::Scaled part = math::take_apart(a);
    Vec<double> s = (part.m - 1.0) / (part.m + 1.0), z = s * s;
    Vec<double> log2_a = part.k + s * (z * math::polynomial<double>(z, log_tail) + two_log2e);
    Vec<double> y = at_least<double>(b * log2_a, broadcast(-beyond_float));
    y = at_most<double>(y, broadcast(beyond_float));
    Vec<double> n = math::round_to_integer(y);
    return math::scale<double>(math::polynomial<double>(y - n, exp2), n);
}

#if defined(__AVX2__)  // and so fused multiply-adds, which find a product's error

namespace math {

// A number as the sum of two: `low` is what the digits of `high` leave out.
struct Pair {
    Vec<double> high, low;
};

// The rounded number: the compiler must not make one multiply-add of what computed it and what uses
// it.
inline Vec<double> rounded(Vec<double> x)
{
#if defined(__AVX512F__)
    asm("" : "+v"(x));
#else
    asm("" : "+x"(x));
#endif
    return x;
}

// a b - c, rounded once.
inline Vec<double> multiply_subtract(Vec<double> a, Vec<double> b, Vec<double> c)
{
#if defined(__AVX512F__)
    return (Vec<double>)_mm512_fmsub_pd((__m512d)a, (__m512d)b, (__m512d)c);
#else
    return (Vec<double>)_mm256_fmsub_pd((__m256d)a, (__m256d)b, (__m256d)c);
#endif
}

// a b, exactly.
inline Pair product(Vec<double> a, Vec<double> b)
{
    Vec<double> high = rounded(a * b);
    return {high, multiply_subtract(a, b, high)};
}

// a + b, exactly, of |a| >= |b| or a = 0.
inline Pair sum(Vec<double> a, Vec<double> b)
{
    Vec<double> high = rounded(a + b);
    return {high, (a - high) + b};
}

inline Pair operator*(Pair a, Pair b)
{
    Pair c = product(a.high, b.high);
    return {c.high, c.low + (a.high * b.low + a.low * b.high)};
}

// Of |a| >= |b| or a = 0.
inline Pair operator+(Pair a, Pair b)
{
    Pair c = sum(a.high, b.high);
    return {c.high, c.low + (a.low + b.low)};
}

inline Pair pair_of(double high, double low) { return {broadcast(high), broadcast(low)}; }

// log2 m = s (2 + 2/3 s^2 + 2/5 s^4 + ...) log2 e.
inline Pair log2_of(Vec<double> a)
{
    // The rest of the series in powers of s^2, error 2^-57 of 2/5 log2 e: what it adds is 2^-12 of
    // the sum.
    constexpr double tail[] = {0.5770780163555853,  0.4121985831111439, 0.3205988979671547,
                               0.2623081914681522,  0.2219527885851067, 0.19238056603036385,
                               0.16888529114458137, 0.16912971664122153};
    Scaled part = take_apart(a);
    Vec<double> f = part.m - 1.0, d = part.m + 1.0, d_low = part.m - (d - 1.0);
    Vec<double> high = rounded(f / d);
    Pair s{high, -(multiply_subtract(high, d, f) + high * d_low) / d};
    Pair z = s * s;
    Pair series = pair_of(0.9617966939259756, 5.0577616648125907e-17) +
                  Pair{rounded(z.high * polynomial<double>(z.high, tail)), Vec<double>{}};
    series = pair_of(2.8853900817779268, 4.0710547481862066e-17) + z * series;
    return Pair{part.k, Vec<double>{}} + s * series;
}

// 2^r - 1 = r (ln 2 + r (ln^2 2 / 2 + ...)) for |r| <= 1/2.
inline Pair exp2_minus_1(Pair r)
{
    // The rest of the series, error 2^-54 of ln^3 2 / 6: what it adds is 2^-7 of the sum.
    constexpr double tail[] = {0.05550410866482158,    0.009618129107628477,
                               0.0013333558146423204,  0.00015403530393379018,
                               1.5252733820815906e-05, 1.3215486798438914e-06,
                               1.0178067252442298e-07, 7.054902335637785e-09,
                               4.4541068401718915e-10, 2.572085448323225e-11};
    Pair series = pair_of(0.24022650695910072, -9.493931253182876e-18) +
                  Pair{rounded(r.high * polynomial<double>(r.high, tail)), Vec<double>{}};
    series = pair_of(0.6931471805599453, 2.3190468138462996e-17) + r * series;
    return r * series;
}

}  // namespace math

// Whether vpower_of_doubles can compute a^b: a is normal, positive and finite. Where |b| is larger,
// the result is 0, 1 or infinite.
inline bool is_ordinary(double a, double b)
{
    return (a >= math::Constants<double>::smallest_normal) & (a - a == 0) & (b < 0x1p64) &
           (b > -0x1p64);
}

// a^b of ordinary doubles; elsewhere the result is arbitrary.
inline Vec<double> vpower_of_doubles(Vec<double> a, Vec<double> b)
{
    constexpr double beyond_double = 1100;
    math::Pair y = math::Pair{b, Vec<double>{}} * math::log2_of(a);
    Vec<double> high = at_most<double>(at_least<double>(y.high, broadcast(-beyond_double)),
                                       broadcast(beyond_double));
    Vec<double> low = high == y.high ? y.low : Vec<double>{};
    Vec<double> n = math::round_to_integer(high);
    math::Pair more = math::exp2_minus_1(math::sum(high - n, low));
    math::Pair result = math::sum(broadcast(1.0), more.high);
    return math::scale<double>(result.high + (result.low + more.low), n);
}

#endif

}  // namespace needle::NEEDLE_TARGET
