// Products of a few rows or columns. They wait for B, or for A, which is read once, as it lies:
// along whole rows, as memory is fastest, or along the depth. Nothing is packed.
#pragma once

#include "product.h"
#include "strided.h"

namespace needle::NEEDLE_TARGET {

// Rows of C, so far apart, n columns from j on: (C or 0) plus `count` columns of A, from k on,
// times as many rows of B.
template <class T, int rows, int count>
void add_rows(const Product<T>& p, T* c, int64_t c_row, bool onto, int64_t j, int64_t n, int64_t k)
{
    const T* b = p.b + k * p.b_depth + j;
    Vec<T> a[rows][count];
    for (int i = 0; i < rows; ++i)
        for (int u = 0; u < count; ++u) a[i][u] = broadcast(p.a[i * p.a_row + (k + u) * p.a_depth]);
    for_vectors<T>(n, [&](int64_t at, int64_t m) __attribute__((always_inline)) {
        Vec<T> sum[rows];
#pragma GCC unroll 4
        for (int i = 0; i < rows; ++i)
            sum[i] = onto ? load_lanes(c + i * c_row + at, 1, m) : Vec<T>{};
#pragma GCC unroll 8
        for (int u = 0; u < count; ++u) {
            Vec<T> row = load_lanes(b + u * p.b_depth + at, 1, m);
#pragma GCC unroll 4
            for (int i = 0; i < rows; ++i) sum[i] += a[i][u] * row;
        }
#pragma GCC unroll 4
        for (int i = 0; i < rows; ++i) store_lanes(c + i * c_row + at, 1, sum[i], m);
    });
}

// The part of the depth [k, end) of rows of C, or its sum with them.
template <class T, int rows>
void add_depth(const Product<T>& p, T* c, int64_t c_row, bool onto, int64_t j, int64_t n, int64_t k,
               int64_t end)
{
    constexpr int at_once = tile_rows == 12 ? 8 : 8 / rows;  // as many as registers hold
    for (; k + at_once <= end; k += at_once, onto = true)
        add_rows<T, rows, at_once>(p, c, c_row, onto, j, n, k);
    for (; k < end; ++k, onto = true) add_rows<T, rows, 1>(p, c, c_row, onto, j, n, k);
}

// A product of very few rows: B is read along its rows, some at a time, as memory is fastest. C,
// or so much of it, stays in the first-level cache. A great depth is summed in parts: to a large
// sum each single product would be added with a large error.
template <class T, int rows>
void run_rows(const Product<T>& p)
{
    constexpr int64_t columns = 16384 / rows / static_cast<int64_t>(sizeof(T)) / 64 * 64;
    constexpr int64_t part = 1024;
    for (int64_t j = 0; j < p.columns; j += columns) {
        int64_t n = min64(columns, p.columns - j);
        add_depth<T, rows>(p, p.c + j, p.c_row, p.accumulate, j, n, 0, min64(part, p.depth));
        for (int64_t k = part; k < p.depth; k += part) {
            T sums[rows * columns];
            add_depth<T, rows>(p, sums, columns, false, j, n, k, min64(k + part, p.depth));
            for (int i = 0; i < rows; ++i)
                for_vectors<T>(n, [&](int64_t at, int64_t m) {
                    T* c = p.c + i * p.c_row + j + at;
                    Vec<T> more = load_lanes(sums + i * columns + at, 1, m);
                    store_lanes(c, 1, load_lanes(c, 1, m) + more, m);
                });
        }
        if (p.bias == nullptr && p.activation == no_activation) continue;
        for (int i = 0; i < rows; ++i) {
            T* c = p.c + i * p.c_row + j;
            for_vectors<T>(n, [&](int64_t at, int64_t m) {
                Vec<T> sum = load_lanes(c + at, 1, m);
                if (p.bias != nullptr) sum += load_lanes(p.bias + j + at, 1, m);
                store_lanes(c + at, 1, activate<T>(sum, p.activation), m);
            });
        }
    }
}

// Whether that pays. A few rows wait for B. Up to half of most_whole_rows always gain; up to all of
// them do where B comes from memory, of which strips would read short runs.
constexpr int most_whole_rows = tile_rows == 12 ? 2 : 4;

template <class T>
bool reads_whole_rows(const Product<T>& p)
{
    constexpr int64_t from_memory = int64_t{8} << 20;
    if (p.rows > most_whole_rows || p.b_column != 1) return false;
    int64_t bytes = p.depth * p.columns * static_cast<int64_t>(sizeof(T));
    return p.rows <= most_whole_rows / 2 || bytes >= from_memory;
}

template <class T, int rows = most_whole_rows>
void run_whole_rows(const Product<T>& p)
{
    if constexpr (rows > 1)
        if (p.rows < rows) return run_whole_rows<T, rows - 1>(p);
    run_rows<T, rows>(p);
}

// `rows` rows of C from i on and `count` columns from j on: sums of products along the depth, where
// A and B are both contiguous.
template <class T, int rows, int count>
void multiply_along(const Product<T>& p, int64_t i, int64_t j)
{
    constexpr int width = lanes<T>, padded = (rows * count + width - 1) / width * width;
    const T *a = p.a + i * p.a_row, *b = p.b + j * p.b_column;
    Vec<T> sums[padded] = {};
    for_vectors<T>(p.depth, [&](int64_t k, int64_t n) __attribute__((always_inline)) {
        Vec<T> left[rows];
#pragma GCC unroll 4
        for (int r = 0; r < rows; ++r) left[r] = load_lanes(a + r * p.a_row + k, 1, n);
#pragma GCC unroll 8
        for (int u = 0; u < count; ++u) {
            Vec<T> right = load_lanes(b + u * p.b_column + k, 1, n);
#pragma GCC unroll 4
            for (int r = 0; r < rows; ++r) sums[r * count + u] += left[r] * right;
        }
    });
    T totals[padded];
#pragma GCC unroll 8
    for (int s = 0; s < padded; s += width)
        store(totals + s, join_lanes_of<T>(sums + s, [](Vec<T> x, Vec<T> y) { return x + y; }));
    for (int r = 0; r < rows; ++r)
        for_vectors<T>(count, [&](int64_t u, int64_t n) {
            T* c = p.c + (i + r) * p.c_row + j + u;
            Vec<T> sum = load_lanes(totals + r * count + u, 1, n);
            if (p.accumulate) sum += load_lanes(c, 1, n);
            if (p.bias != nullptr) sum += load_lanes(p.bias + j + u, 1, n);
            store_lanes(c, 1, activate<T>(sum, p.activation), n);
        });
}

// Rows [i0, i1) of C, `count` columns from j on.
template <class T, int count>
void run_below(const Product<T>& p, int64_t i0, int64_t i1, int64_t j)
{
    int64_t i = i0;
    for (; i + 4 <= i1; i += 4) multiply_along<T, 4, count>(p, i, j);
    switch (i1 - i) {
        case 3: return multiply_along<T, 3, count>(p, i, j);
        case 2: return multiply_along<T, 2, count>(p, i, j);
        case 1: return multiply_along<T, 1, count>(p, i, j);
    }
}

constexpr int64_t along_rows = tile_rows == 12 ? 32 : 12, along_columns = 8;

// A product of few rows or columns with a transposed B, which packing would cost more.
template <class T>
void run_along(const Product<T>& p)
{
    constexpr int wide = tile_rows == 12 ? 8 : 4, narrow = wide / 2;
    for (int64_t i = 0; i < p.rows; i += along_rows) {
        int64_t end = min64(p.rows, i + along_rows), j = 0;
        if (p.rows < 4)
            for (; j + wide <= p.columns; j += wide) run_below<T, wide>(p, i, end, j);
        for (; j + narrow <= p.columns; j += narrow) run_below<T, narrow>(p, i, end, j);
        for (; j < p.columns; ++j) run_below<T, 1>(p, i, end, j);
    }
}

// Whether that pays: not of a short depth, for each sum ends with its lanes.
template <class T>
bool runs_along(const Product<T>& p)
{
    if (p.a_depth != 1 || p.b_depth != 1) return false;
    if (p.rows > along_rows && p.columns > along_columns) return false;
    return p.depth >= 8 * min64(p.rows, p.columns) + 16;
}

// Whether B is one column and A transposed: then C, a row as good as a column, is B times that A.
template <class T>
bool is_column(const Product<T>& p)
{
    return p.columns == 1 && p.rows > 1 && p.a_row == 1 && p.c_row == 1;
}

template <class T>
void run_column(const Product<T>& p)
{
    Product<T> turned = p;
    turned.rows = 1;
    turned.columns = p.rows;
    turned.a = p.b;
    turned.a_depth = p.b_depth;
    turned.b = p.a;
    turned.b_depth = p.a_depth;
    turned.b_column = 1;
    turned.bias = nullptr;
    turned.activation = no_activation;
    run_rows<T, 1>(turned);
    if (p.bias == nullptr && p.activation == no_activation) return;
    Vec<T> bias = broadcast(p.bias == nullptr ? T(0) : *p.bias);
    for_vectors<T>(p.rows, [&](int64_t i, int64_t n) {
        Vec<T> sum = load_lanes(p.c + i, 1, n) + bias;
        store_lanes(p.c + i, 1, activate<T>(sum, p.activation), n);
    });
}

// `rows` rows of C from i on, of at most one vector of columns.
template <class T, int rows>
void multiply_small(const Product<T>& p, int64_t i)
{
    const int64_t n = p.columns;
    const T *a = p.a + i * p.a_row, *b = p.b;
    Vec<T> sums[rows] = {};
    for (int64_t k = 0; k < p.depth; ++k, a += p.a_depth, b += p.b_depth) {
        Vec<T> row = load_lanes(b, 1, n);
#pragma GCC unroll 4
        for (int r = 0; r < rows; ++r) sums[r] += a[r * p.a_row] * row;
    }
    for (int r = 0; r < rows; ++r) {
        T* c = p.c + (i + r) * p.c_row;
        if (p.accumulate) sums[r] += load_lanes(c, 1, n);
        if (p.bias != nullptr) sums[r] += load_lanes(p.bias, 1, n);
        store_lanes(c, 1, activate<T>(sums[r], p.activation), n);
    }
}

// A product so small that packing and planning would take longer than it does: one of many.
template <class T>
bool is_small(const Product<T>& p)
{
    return p.columns <= lanes<T> && p.rows * p.depth <= 256 && p.b_column == 1;
}

template <class T>
void run_small(const Product<T>& p)
{
    int64_t i = 0;
    for (; i + 4 <= p.rows; i += 4) multiply_small<T, 4>(p, i);
    for (; i < p.rows; ++i) multiply_small<T, 1>(p, i);
}

// Runs the product if it is one of these.
template <class T>
bool run_thin(const Product<T>& p)
{
    if (p.rows < 1 || p.columns < 1 || p.sums != nullptr) return false;
    if (is_small(p))
        run_small(p);
    else if (runs_along(p))
        run_along(p);
    else if (reads_whole_rows(p))
        run_whole_rows(p);
    else if (is_column(p))
        run_column(p);
    else
        return false;
    return true;
}

}  // namespace needle::NEEDLE_TARGET
