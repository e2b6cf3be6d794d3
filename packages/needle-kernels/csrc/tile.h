// The register tile that matrix products and convolutions are made of.
//
// A tile is MR rows by NV vectors of columns of C, held in registers while k runs:
//
//     for segment in segments:
//         for k in segment.k:
//             C[i, :] += A[i, k] * B[k, :]          i < MR, one broadcast and NV multiply-adds each
//
// A product has one segment; a convolution has one for each run of taps that lie in the image, so
// padding costs nothing and no patch matrix is built. B's columns are contiguous. A is read in
// place, either with its k contiguous (row stride `a_stride`) or with its rows contiguous (k stride
// `a_stride`): the second is a transposed operand, and also a packed panel.
#pragma once

#include <utility>

#include "parallel.h"
#include "simd.h"
#include "vmath.h"

namespace needle::NEEDLE_TARGET {

template <class T>
struct Segment {
    const T* a;
    const T* b;
    int64_t k;
};

enum Activation { no_activation, relu_activation, tanh_activation, sigmoid_activation };

enum class RowOrder { k_contiguous, rows_contiguous };

constexpr int64_t fetch_interval = 8;

// What will be needed soon: `rows` runs of memory of `length` elements. A tile begins one every
// `interval` of its k, or later, for it fetches one cache line with each k.
template <class T>
struct Ahead {
    const T* at = nullptr;
    int64_t rows = 0, length = 0, stride = 0;
    int64_t interval = fetch_interval;
    bool into_second = false;  // and not into the first-level cache
};

template <class T>
struct Tile {
    const Segment<T>* segments;
    int64_t segment_count;
    int64_t a_stride;
    int64_t b_stride;  // from one k to the next
    T* c;
    int64_t c_stride;  // from one row to the next
    int64_t columns;   // how many of the tile's columns exist in C
    const T* bias;     // of the tile's columns, or nullptr
    Activation activation;
    bool accumulate;   // C += rather than C =
    bool finish;       // the last part of the sum: add the bias and apply the activation
    int64_t rows = 0;  // of a narrow tile: how many of its rows exist in C
    Ahead<T> ahead{};
    const Ahead<T>* then = nullptr;  // what is fetched after that
    bool past_caches = false;        // C is written with stream_store
    T* panel = nullptr;              // of a tile that packs B: where to
};

// Enough accumulators to hide the latency of the multiply-adds, and two registers for B.
#if defined(__AVX512F__)
constexpr int tile_rows = 12;
#elif defined(__AVX2__)
constexpr int tile_rows = 6;
#else
constexpr int tile_rows = 4;
#endif
constexpr int tile_vectors = 2;
template <class T>
constexpr int tile_columns = tile_vectors * lanes<T>;
constexpr int narrow_tile_rows = tile_vectors * tile_rows;  // of a tile one vector wide

template <class T>
inline Vec<T> activate(Vec<T> x, Activation activation)
{
    switch (activation) {
        case relu_activation: return x < Vec<T>{} ? Vec<T>{} : x;  // NaN stays
        case tanh_activation: return vtanh<T>(x);
        case sigmoid_activation: return vsigmoid<T>(x);
        default: return x;
    }
}

// What a tile does with its sums, `vectors` to a row, where columns or rows are missing or there is
// an activation.
template <class T>
[[gnu::noinline]] void finish_tile(const Tile<T>& tile, const Vec<T>* sums, int rows, int vectors)
{
    constexpr int width = lanes<T>;
    for (int v = 0; v < vectors; ++v) {
        int64_t n = max64(0, min64(width, tile.columns - v * width));
        Vec<T> bias{};
        if (tile.finish && tile.bias != nullptr) bias = load_first(tile.bias + v * width, n);
        for (int i = 0; i < rows; ++i) {
            T* c = tile.c + i * tile.c_stride + v * width;
            Vec<T> x = sums[i * vectors + v];
            if (tile.accumulate) x += load_first(c, n);
            if (tile.finish) x = activate<T>(x + bias, tile.activation);
            store_first(c, x, n);
        }
    }
}

// Every index is a constant after unrolling, so the sums stay in registers.
template <class T, int MR, int NV>
inline void store_tile(const Tile<T>& tile, Vec<T> (&sum)[MR][NV])
{
    constexpr int width = lanes<T>;
    int rows = tile.rows > 0 ? static_cast<int>(tile.rows) : MR;
    if (rows < MR || tile.columns < NV * width || tile.activation != no_activation) {
        Vec<T> kept[MR * NV];
#pragma GCC unroll 32
        for (int i = 0; i < MR; ++i)
#pragma GCC unroll 8
            for (int v = 0; v < NV; ++v) kept[i * NV + v] = sum[i][v];
        return finish_tile(tile, kept, rows, NV);
    }
    if (tile.accumulate)
#pragma GCC unroll 32
        for (int i = 0; i < MR; ++i)
#pragma GCC unroll 8
            for (int v = 0; v < NV; ++v) sum[i][v] += load(tile.c + i * tile.c_stride + v * width);
    if (tile.finish && tile.bias != nullptr)
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v) {
            Vec<T> bias = load(tile.bias + v * width);
#pragma GCC unroll 32
            for (int i = 0; i < MR; ++i) sum[i][v] += bias;
        }
    auto write = [&](auto put) __attribute__((always_inline)) {
#pragma GCC unroll 32
        for (int i = 0; i < MR; ++i)
#pragma GCC unroll 8
            for (int v = 0; v < NV; ++v) put(tile.c + i * tile.c_stride + v * width, sum[i][v]);
    };
    if (tile.past_caches)
        write([](T* p, Vec<T> x) { stream_store<T>(p, x); });
    else
        write([](T* p, Vec<T> x) { store<T>(p, x); });
}

// With b_ahead, every k also fetches the row of B that lies so many rows further on. With `packs`,
// every k also stores its row of B, whole vectors, behind the last one's: a panel for other tiles.
// `width`: the lanes of a vector, or half of them for a tile of so few columns.
template <class T, int MR, int NV, RowOrder order, int b_ahead = 0, bool packs = false,
          int width = lanes<T>>
void run_tile(const Tile<T>& tile)
{
    typedef T V __attribute__((vector_size(width * sizeof(T))));
    constexpr int64_t line = 64 / static_cast<int64_t>(sizeof(T));  // of a cache
    constexpr bool by_rows = order == RowOrder::rows_contiguous;
    // Three rows share a base pointer, at 0, 1 and 2 strides: x86 addresses each in one operand.
    constexpr int groups = by_rows ? 1 : (MR + 2) / 3;
    Ahead<T> ahead = tile.ahead;
    const Ahead<T>* then = tile.then;
    V sum[MR][NV];
#pragma GCC unroll 32
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v) sum[i][v] = V{};

    const int64_t a_stride = tile.a_stride, b_stride = tile.b_stride;
    T* panel = tile.panel;
    for (int64_t s = 0; s < tile.segment_count; ++s) {
        const Segment<T>& segment = tile.segments[s];
        const T* b = segment.b;
        const T* base[groups];
        for (int g = 0; g < groups; ++g) base[g] = segment.a + 3 * g * a_stride;
        auto add_k = [&](int u) __attribute__((always_inline)) {
            V row[NV];
#pragma GCC unroll 8
            for (int v = 0; v < NV; ++v) {
                std::memcpy(&row[v], b + v * width, sizeof(V));
                if (b_ahead > 0) __builtin_prefetch(b + b_ahead * b_stride + v * width);
                if (packs) std::memcpy(panel + v * width, &row[v], sizeof(V));
            }
            b += b_stride;
            if (packs) panel += NV * width;
#pragma GCC unroll 32
            for (int i = 0; i < MR; ++i) {
                T x = by_rows ? base[0][i] : base[by_rows ? 0 : i / 3][(i % 3) * a_stride + u];
#pragma GCC unroll 8
                for (int v = 0; v < NV; ++v) sum[i][v] += (x - V{}) * row[v];
            }
        };
        auto advance = [&](int64_t step) __attribute__((always_inline)) {
#pragma GCC unroll 8
            for (int g = 0; g < groups; ++g) base[g] += step;
        };
        auto add_all = [&](int64_t count, auto fetch_line) __attribute__((always_inline)) {
            for (; !by_rows && count >= 2; count -= 2) {
                fetch_line();
                fetch_line();
                add_k(0);
                add_k(1);
                advance(2);
            }
            for (; count > 0; --count) {
                fetch_line();
                add_k(0);
                advance(by_rows ? a_stride : 1);
            }
        };
        int64_t k = segment.k;
        while (ahead.rows > 0 && k > 0) {
            int64_t fetching = min64(k, 2 * ceil_div(ahead.length, 2 * line));
            const T* next = ahead.at;
            if (ahead.into_second)
                add_all(fetching, [&] {
                    __builtin_prefetch(next, 0, 2);
                    next += line;
                });
            else
                add_all(fetching, [&] {
                    __builtin_prefetch(next);
                    next += line;
                });
            k -= fetching;
            if (int64_t pause = min64(k, ahead.interval - fetching); pause > 0) {
                add_all(pause, [] {});
                k -= pause;
            }
            ahead.at += ahead.stride;
            if (--ahead.rows == 0 && then != nullptr) ahead = *std::exchange(then, nullptr);
        }
        add_all(k, [] {});
    }
    if constexpr (width < lanes<T>) {
        Vec<T> whole[MR][NV] = {};
        for (int i = 0; i < MR; ++i) std::memcpy(&whole[i][0], &sum[i][0], sizeof(V));
        store_tile<T, MR, NV>(tile, whole);
    } else {
        store_tile<T, MR, NV>(tile, sum);
    }
}

// Rows of the next tile, of so many that are left. The last two share what would leave the last one
// with less than half a tile: too few multiply-adds between the loads, and to hide their latency.
inline int tile_rows_for(int64_t rows)
{
    if (rows <= tile_rows) return static_cast<int>(rows);
    bool enough_left = rows - tile_rows >= tile_rows / 2;
    return enough_left ? tile_rows : static_cast<int>(ceil_div(rows, 2));
}

template <class T, int NV, RowOrder order, int b_ahead, bool packs = false, int width = lanes<T>,
          int MR = tile_rows>
inline void run_tile_rows(int rows, const Tile<T>& tile)
{
    if constexpr (MR > 1)
        if (rows < MR)
            return run_tile_rows<T, NV, order, b_ahead, packs, width, MR - 1>(rows, tile);
    run_tile<T, MR, NV, order, b_ahead, packs, width>(tile);
}

// Half a vector costs half as much where a processor splits its vectors.
template <class T, RowOrder order, int b_ahead>
inline void run_tile_columns(int rows, const Tile<T>& tile)
{
    constexpr int width = lanes<T>;
    if (tile.columns > width)
        run_tile_rows<T, 2, order, b_ahead>(rows, tile);
    else if (tile.columns > width / 2)
        run_tile_rows<T, 1, order, b_ahead>(rows, tile);
    else
        run_tile_rows<T, 1, order, b_ahead, false, width / 2>(rows, tile);
}

// `rows` is a value of tile_rows_for; tile.columns is at most tile_columns. Columns beyond
// tile.columns are computed from B's memory, which must be readable there, and not stored.
template <class T, int b_ahead = 0>
inline void run_tile(int rows, RowOrder order, const Tile<T>& tile)
{
    if (order == RowOrder::rows_contiguous)
        run_tile_columns<T, RowOrder::rows_contiguous, b_ahead>(rows, tile);
    else
        run_tile_columns<T, RowOrder::k_contiguous, b_ahead>(rows, tile);
}

// The same for whole panels of columns, with their rows of B stored at tile.panel.
template <class T, int b_ahead>
inline void run_packing_tile(int rows, RowOrder order, const Tile<T>& tile)
{
    if (order == RowOrder::rows_contiguous)
        run_tile_rows<T, tile_vectors, RowOrder::rows_contiguous, b_ahead, true>(rows, tile);
    else
        run_tile_rows<T, tile_vectors, RowOrder::k_contiguous, b_ahead, true>(rows, tile);
}

// tile.rows rows, at most narrow_tile_rows, by at most one vector of columns; A's rows contiguous.
// A is read for up to two more: heights go in threes, the channels of a colour image.
template <class T, int MR = narrow_tile_rows>
inline void run_narrow_tile(const Tile<T>& tile)
{
    if constexpr (MR > 3)
        if (tile.rows <= MR - 3) return run_narrow_tile<T, MR - 3>(tile);
    run_tile<T, MR, 1, RowOrder::rows_contiguous>(tile);
}

}  // namespace needle::NEEDLE_TARGET
