// Vectors of the target's width, written with the compilers' vector extension: +, -, *, /,
// comparisons and `mask ? a : b` work lane by lane. a * b + c becomes one fused multiply-add
// (-ffp-contract=fast) where the target has it.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define NEEDLE_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define NEEDLE_VECTOR_BYTES 32
#else
#define NEEDLE_VECTOR_BYTES 16
#endif

namespace needle::NEEDLE_TARGET {

template <class T>
struct VecOf {
    typedef T type __attribute__((vector_size(NEEDLE_VECTOR_BYTES)));
};
template <class T>
using Vec = typename VecOf<T>::type;

// The integer type as wide as T, for masks and bit patterns.
template <class T>
struct BitsOf;
template <>
struct BitsOf<float> {
    using type = int32_t;
};
template <>
struct BitsOf<double> {
    using type = int64_t;
};
template <class T>
using Bits = typename BitsOf<T>::type;

template <class T>
constexpr int lanes = NEEDLE_VECTOR_BYTES / static_cast<int>(sizeof(T));

template <class T>
inline Vec<T> load(const T* p)
{
    Vec<T> v;
    std::memcpy(&v, p, sizeof(v));
    return v;
}

template <class T>
inline void store(T* p, Vec<T> v)
{
    std::memcpy(p, &v, sizeof(v));
}

// Writes past the caches, which then need not fetch the line first: for what they could not keep
// until it is read. p is a multiple of the vector's size. Whoever writes so calls end_stream()
// before others read it.
template <class T>
inline void stream_store(T* p, Vec<T> v)
{
#if defined(__AVX512F__)
    _mm512_stream_si512(reinterpret_cast<__m512i*>(p), (__m512i)v);
#elif defined(__AVX2__)
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), (__m256i)v);
#else
    store(p, v);
#endif
}

inline void end_stream()
{
#if defined(__AVX2__)
    _mm_sfence();
#endif
}

// Whether every row begins at a multiple of the vector's size, as stream_store needs it.
template <class T>
inline bool rows_are_aligned(const T* first, int64_t row_stride)
{
    int64_t step = row_stride * static_cast<int64_t>(sizeof(T));
    return reinterpret_cast<uintptr_t>(first) % NEEDLE_VECTOR_BYTES == 0 &&
           step % NEEDLE_VECTOR_BYTES == 0;
}

template <class T>
inline Vec<T> broadcast(T x)
{
    return x - Vec<T>{};  // not Vec<T>{} + x, which makes -0.0 positive
}

#if defined(__AVX2__) && !defined(__AVX512F__)
// From place 8 - n on: n words that are set, and then none.
alignas(64) constexpr int32_t first_lanes[16] = {-1, -1, -1, -1, -1, -1, -1, -1};

// The first n lanes, as maskload takes them.
template <class T>
inline __m256i mask_of_first(int64_t n)
{
    constexpr int64_t words = sizeof(T) / 4;
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(first_lanes + 8 - n * words));
}
#endif

// The first n lanes, 0 <= n <= lanes; the others are zero and their memory is not touched.
template <class T>
inline Vec<T> load_first(const T* p, int64_t n)
{
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4)
        return (Vec<T>)_mm512_maskz_loadu_epi32((__mmask16)((1u << n) - 1), p);
    else if constexpr (sizeof(T) == 8)
        return (Vec<T>)_mm512_maskz_loadu_epi64((__mmask8)((1u << n) - 1), p);
#elif defined(__AVX2__)
    if constexpr (sizeof(T) >= 4)
        return (Vec<T>)_mm256_maskload_epi32(reinterpret_cast<const int*>(p), mask_of_first<T>(n));
#endif
    Vec<T> v{};
    std::memcpy(&v, p, static_cast<size_t>(n) * sizeof(T));
    return v;
}

// Writes the first n lanes, 0 <= n <= lanes.
template <class T>
inline void store_first(T* p, Vec<T> v, int64_t n)
{
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) {
        _mm512_mask_storeu_epi32(p, (__mmask16)((1u << n) - 1), (__m512i)v);
        return;
    } else if constexpr (sizeof(T) == 8) {
        _mm512_mask_storeu_epi64(p, (__mmask8)((1u << n) - 1), (__m512i)v);
        return;
    }
#elif defined(__AVX2__)
    if constexpr (sizeof(T) >= 4) {  // a masked store takes four times as long on Zen 3
        char* at = reinterpret_cast<char*>(p);
        int64_t bytes = n * static_cast<int64_t>(sizeof(T));
        if (bytes & 32) return store(p, v);
        __m128i rest = _mm256_castsi256_si128((__m256i)v);
        if (bytes & 16) {
            _mm_storeu_si128(reinterpret_cast<__m128i*>(at), rest);
            rest = _mm256_extracti128_si256((__m256i)v, 1);
            at += 16;
        }
        if (bytes & 8) {
            _mm_storeu_si64(at, rest);
            rest = _mm_unpackhi_epi64(rest, rest);
            at += 8;
        }
        if (bytes & 4) _mm_storeu_si32(at, rest);
        return;
    }
#endif
    std::memcpy(p, &v, static_cast<size_t>(n) * sizeof(T));
}

// x, or `low` in the lanes where that is larger; NaN in x stays, and in `low` is passed over. (One
// instruction, where gcc makes two of `x < low ? low : x`.)
template <class T>
inline Vec<T> at_least(Vec<T> x, Vec<T> low)
{
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4)
        return (Vec<T>)_mm512_maskz_max_ps(0xffff, (__m512)low, (__m512)x);
    else
        return (Vec<T>)_mm512_maskz_max_pd(0xff, (__m512d)low, (__m512d)x);
#elif defined(__AVX2__)
    if constexpr (sizeof(T) == 4)
        return (Vec<T>)_mm256_max_ps((__m256)low, (__m256)x);
    else
        return (Vec<T>)_mm256_max_pd((__m256d)low, (__m256d)x);
#else
    return x < low ? low : x;
#endif
}

// The same with what is smaller.
template <class T>
inline Vec<T> at_most(Vec<T> x, Vec<T> high)
{
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4)
        return (Vec<T>)_mm512_maskz_min_ps(0xffff, (__m512)high, (__m512)x);
    else
        return (Vec<T>)_mm512_maskz_min_pd(0xff, (__m512d)high, (__m512d)x);
#elif defined(__AVX2__)
    if constexpr (sizeof(T) == 4)
        return (Vec<T>)_mm256_min_ps((__m256)high, (__m256)x);
    else
        return (Vec<T>)_mm256_min_pd((__m256d)high, (__m256d)x);
#else
    return x > high ? high : x;
#endif
}

// As many floats as a vector has doubles, as doubles. (gcc converts in halves unless told.)
inline Vec<double> load_widened(const float* p)
{
#if defined(__AVX512F__)
    return (Vec<double>)_mm512_maskz_cvtps_pd(0xff, _mm256_loadu_ps(p));
#elif defined(__AVX2__)
    return (Vec<double>)_mm256_cvtps_pd(_mm_loadu_ps(p));
#else
    typedef float Half __attribute__((vector_size(NEEDLE_VECTOR_BYTES / 2)));
    Half half;
    std::memcpy(&half, p, sizeof(half));
    return __builtin_convertvector(half, Vec<double>);
#endif
}

// The first n lanes, 0 <= n <= lanes; the others are zero and their memory is not touched.
inline Vec<double> load_widened_first(const float* p, int64_t n)
{
#if defined(__AVX512F__)
    __mmask8 first = (__mmask8)((1u << n) - 1);
    return (Vec<double>)_mm512_maskz_cvtps_pd(first, _mm256_maskz_loadu_ps(first, p));
#elif defined(__AVX2__)
    __m128i index = _mm_setr_epi32(0, 1, 2, 3);
    __m128i mask = _mm_cmpgt_epi32(_mm_set1_epi32(static_cast<int>(n)), index);
    return (Vec<double>)_mm256_cvtps_pd(_mm_maskload_ps(p, mask));
#else
    float values[lanes<double>] = {};
    for (int64_t i = 0; i < n; ++i) values[i] = p[i];
    return load_widened(values);
#endif
}

inline void store_narrowed(float* p, Vec<double> v)
{
#if defined(__AVX512F__)
    _mm256_storeu_ps(p, _mm512_maskz_cvtpd_ps(0xff, (__m512d)v));
#elif defined(__AVX2__)
    _mm_storeu_ps(p, _mm256_cvtpd_ps((__m256d)v));
#else
    typedef float Half __attribute__((vector_size(NEEDLE_VECTOR_BYTES / 2)));
    Half half = __builtin_convertvector(v, Half);
    std::memcpy(p, &half, sizeof(half));
#endif
}

// sum + load_widened(p), to the last bit. It is a multiplication by `one`, which must be
// hidden_one(), and an addition in one instruction: processors whose additions wait for the units
// that convert (Zen) have others for these, and add up a third more floats.
inline Vec<double> add_widened(Vec<double> sum, const float* p, [[maybe_unused]] Vec<double> one)
{
#if defined(__AVX512F__)
    return (Vec<double>)_mm512_fmadd_pd((__m512d)load_widened(p), (__m512d)one, (__m512d)sum);
#elif defined(__AVX2__)
    return (Vec<double>)_mm256_fmadd_pd((__m256d)load_widened(p), (__m256d)one, (__m256d)sum);
#else
    return sum + load_widened(p);
#endif
}

// 1, which the compiler does not know: it would leave the multiplication out.
inline Vec<double> hidden_one()
{
    Vec<double> one = broadcast(1.0);
#if defined(__AVX512F__)
    asm("" : "+v"(one));
#elif defined(__AVX2__)
    asm("" : "+x"(one));
#endif
    return one;
}

// As many bytes as a vector has floats, as floats. (gcc converts them one by one unless told.)
inline Vec<float> load_bytes(const uint8_t* p)
{
#if defined(__AVX512F__)
    __m512i wide = _mm512_maskz_cvtepu8_epi32(0xffff, _mm_loadu_si128((const __m128i*)p));
    return (Vec<float>)_mm512_maskz_cvtepi32_ps(0xffff, wide);
#elif defined(__AVX2__)
    return (Vec<float>)_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p)));
#else
    Vec<float> v;
    for (int i = 0; i < lanes<float>; ++i) v[i] = p[i];
    return v;
#endif
}

template <class T, int by, int... L>
inline Vec<T> rotate_lanes(Vec<T> v, std::integer_sequence<int, L...>)
{
    return __builtin_shufflevector(v, v, ((L + by) % lanes<T>)...);
}

// All lanes taken together: join(a, b) takes each of the first half with one of the second.
template <class T, int half = lanes<T> / 2, class Join>
inline T join_lanes(Vec<T> v, const Join& join)
{
    if constexpr (half == 0) {
        return v[0];
    } else {
        Vec<T> second = rotate_lanes<T, half>(v, std::make_integer_sequence<int, lanes<T>>{});
        return join_lanes<T, half / 2>(join(v, second), join);
    }
}

// Of the first halves, each of `half` lanes, that two vectors have side by side: lane `lane`.
constexpr int low_half(int lane, int half) { return lane / half * 2 * half + lane % half; }

// Halves of `half` lanes of two neighbours make one vector, of which there are then half as many.
template <class T, int half, class Join, int... L>
inline Vec<T> join_lanes_of(Vec<T>* v, const Join& join, std::integer_sequence<int, L...> numbers)
{
#pragma GCC unroll 8
    for (int r = 0; r < half; ++r) {
        Vec<T> low = __builtin_shufflevector(v[2 * r], v[2 * r + 1], low_half(L, half)...);
        Vec<T> high = __builtin_shufflevector(v[2 * r], v[2 * r + 1], low_half(L, half) + half...);
        v[r] = join(low, high);
    }
    if constexpr (half > 1) return join_lanes_of<T, half / 2>(v, join, numbers);
    return v[0];
}

// Lane r: the lanes of v[r] taken together as join_lanes does it. There are as many vectors as one
// has lanes; they are overwritten.
template <class T, class Join>
inline Vec<T> join_lanes_of(Vec<T>* v, const Join& join)
{
    return join_lanes_of<T, lanes<T> / 2>(v, join, std::make_integer_sequence<int, lanes<T>>{});
}

// The sum of all lanes, pairwise.
template <class T>
inline T sum_lanes(Vec<T> v)
{
    return join_lanes<T>(v, [](Vec<T> a, Vec<T> b) { return a + b; });
}

}  // namespace needle::NEEDLE_TARGET
