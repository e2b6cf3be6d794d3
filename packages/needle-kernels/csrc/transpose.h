// Transposing in registers.
#pragma once

#include <utility>

#include "simd.h"

namespace needle::NEEDLE_TARGET {

// Elements of 4 or 8 bytes in 16 bytes, and in a cache line.
template <class T>
constexpr int per_piece = 16 / static_cast<int>(sizeof(T));
template <class T>
constexpr int per_line = 64 / static_cast<int>(sizeof(T));

template <class T, int count>
struct ElementsOf {
    typedef T type __attribute__((vector_size(count * sizeof(T))));
};
template <class T, int count>
using Elements = typename ElementsOf<T, count>::type;

template <class T, int count, int... L>
inline Elements<T, 2 * count> put_together(Elements<T, count> a, Elements<T, count> b,
                                           std::integer_sequence<int, L...>)
{
    return __builtin_shufflevector(a, b, L...);
}

// Pieces of 16 bytes that lie so many elements apart, side by side.
template <class T, int count = lanes<T>>
inline Elements<T, count> load_pieces(const T* p, int64_t apart)
{
    if constexpr (count == per_piece<T>) {
        Elements<T, count> found;
        std::memcpy(&found, p, sizeof(found));
        return found;
    } else {
        constexpr int half = count / 2;
        return put_together<T, half>(load_pieces<T, half>(p, apart),
                                     load_pieces<T, half>(p + half / per_piece<T> * apart, apart),
                                     std::make_integer_sequence<int, count>{});
    }
}

// a0 b0 a1 b1 ... in each 16 bytes: of their first halves, or (`high`) of their second ones. Units
// may be pairs of elements.
template <class Unit, bool high, class V, int... L>
inline V zip_lanes(V a, V b, std::integer_sequence<int, L...>)
{
    constexpr int count = sizeof...(L), n = per_piece<Unit>, first = high ? n / 2 : 0;
    using Units = Elements<Unit, count>;
    return (V)__builtin_shufflevector((Units)a, (Units)b,
                                      (L / n * n + L % n / 2 + first + L % 2 * count)...);
}
template <class Unit, bool high, class V>
inline V zip(V a, V b)
{
    return zip_lanes<Unit, high>(a, b, std::make_integer_sequence<int, sizeof(V) / sizeof(Unit)>{});
}

// v[i]: element i of `width` rows. Vectors of every fourth row's pieces (every second one's, of 8
// bytes), for which loads do most of the work, are zipped.
template <class T, int width>
inline void load_transposed(const T* p, int64_t row_stride, Elements<T, width> (&v)[per_piece<T>])
{
    constexpr int n = per_piece<T>;
    Elements<T, width> rows[n];
#pragma GCC unroll 4
    for (int i = 0; i < n; ++i) rows[i] = load_pieces<T, width>(p + i * row_stride, n * row_stride);
    if constexpr (n == 4) {
        auto a = zip<int32_t, false>(rows[0], rows[1]), b = zip<int32_t, true>(rows[0], rows[1]);
        auto c = zip<int32_t, false>(rows[2], rows[3]), d = zip<int32_t, true>(rows[2], rows[3]);
        v[0] = zip<int64_t, false>(a, c);
        v[1] = zip<int64_t, true>(a, c);
        v[2] = zip<int64_t, false>(b, d);
        v[3] = zip<int64_t, true>(b, d);
    } else {
        v[0] = zip<int64_t, false>(rows[0], rows[1]);
        v[1] = zip<int64_t, true>(rows[0], rows[1]);
    }
}

// Column i of so many rows of `in`, each of which is a cache line long, becomes row i of `out`.
// `stream` writes past the caches, which then need not fetch lines of `out` first. (Inlined, gcc
// would keep a pointer to each row, on the stack.)
template <int rows, class T>
[[gnu::noinline]] void transpose_lines(T* out, int64_t out_row, const T* in, int64_t in_row,
                                       bool stream = false)
{
    constexpr int n = per_piece<T>;
#pragma GCC unroll 4
    for (int k = 0; k < per_line<T>; k += n)
#pragma GCC unroll 4
        for (int r = 0; r < rows; r += lanes<T>) {
            Vec<T> v[n];
            load_transposed<T, lanes<T>>(in + r * in_row + k, in_row, v);
#pragma GCC unroll 4
            for (int i = 0; i < n; ++i) {
                T* place = out + (k + i) * out_row + r;
                if (stream)
                    stream_store<T>(place, v[i]);
                else
                    store(place, v[i]);
            }
        }
}

// The same of a square of 16 bytes a row.
template <class T>
inline void transpose_pieces(T* out, int64_t out_row, const T* in, int64_t in_row)
{
    constexpr int n = per_piece<T>;
    Elements<T, n> v[n];
    load_transposed<T, n>(in, in_row, v);
#pragma GCC unroll 4
    for (int i = 0; i < n; ++i) std::memcpy(out + i * out_row, &v[i], sizeof(v[i]));
}

// ---- few channels

// Where lane `lane` of vector J of C channels side by side comes from when channel c joins those
// before it: from a pixel of c (counted from lanes<T> on), or from what they already are.
template <int C, int J, class T>
constexpr int joined_lane(int lane, int c)
{
    int pixel = (J * lanes<T> + lane) / C, channel = (J * lanes<T> + lane) % C;
    if (channel == c) return lanes<T> + pixel;
    return c == 1 ? pixel : lane;
}

template <int C, int J, class T, int... L>
Vec<T> join_channels(const Vec<T> (&v)[C], std::integer_sequence<int, L...>)
{
    Vec<T> out = __builtin_shufflevector(v[0], v[1], joined_lane<C, J, T>(L, 1)...);
    if constexpr (C > 2) out = __builtin_shufflevector(out, v[2], joined_lane<C, J, T>(L, 2)...);
    if constexpr (C > 3) out = __builtin_shufflevector(out, v[3], joined_lane<C, J, T>(L, 3)...);
    return out;
}

// out[i * C + c] = from[c * channel_stride + i] for the pixels of one vector.
template <int C, class T, int... J>
void interleave_vector(const T* from, int64_t channel_stride, T* out,
                       std::integer_sequence<int, J...>)
{
    Vec<T> v[C];
    for (int c = 0; c < C; ++c) v[c] = load(from + c * channel_stride);
    (store(out + J * lanes<T>,
           join_channels<C, J, T>(v, std::make_integer_sequence<int, lanes<T>>{})),
     ...);
}

// The same for n pixels.
template <int C, class T>
void interleave(const T* from, int64_t channel_stride, int64_t n, T* out)
{
    int64_t i = 0;
    for (; i + lanes<T> <= n; i += lanes<T>)
        interleave_vector<C>(from + i, channel_stride, out + i * C,
                             std::make_integer_sequence<int, C>{});
    for (; i < n; ++i)
        for (int c = 0; c < C; ++c) out[i * C + c] = from[c * channel_stride + i];
}

}  // namespace needle::NEEDLE_TARGET
