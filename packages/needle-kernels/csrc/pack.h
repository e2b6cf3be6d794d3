// Packing: operands copied into the order in which a register tile reads them.
//
// B becomes panels of tile_columns columns, [panel][k][column], zero where there is no column.
// A becomes panels of tile_rows_for(rows left) rows, [panel][k][row].
#pragma once

#include "tile.h"
#include "transpose.h"

namespace needle::NEEDLE_TARGET {

// out[k * out_stride + r] = from[r * row_stride + k] for the rows r of one vector, zero where there
// is no row. `room`: how many elements from out on belong to this k. Where that is less than a
// vector, the store runs into the next k, whose first elements must therefore be written later.
template <class T>
void pack_transposed(const T* from, int64_t row_stride, int64_t rows, int64_t depth, T* out,
                     int64_t out_stride, int64_t room)
{
    constexpr int64_t width = lanes<T>, n = per_piece<T>;
    int64_t k = 0;
    for (; rows >= width && k + per_line<T> <= depth; k += per_line<T>)
        transpose_lines<lanes<T>>(out + k * out_stride, out_stride, from + k, row_stride);
    T few[width * n] = {};  // where rows or k are few
    for (; k < depth; k += n) {
        Vec<T> v[n];
        for (int64_t r = 0; r < min64(rows, width); ++r) {
            const T* row = from + r * row_stride + k;
            if (k + n <= depth)
                std::memcpy(few + r * n, row, n * sizeof(T));
            else
                for (int64_t i = 0; i < depth - k; ++i) few[r * n + i] = row[i];
        }
        load_transposed<T, lanes<T>>(few, n, v);
#pragma GCC unroll 4
        for (int64_t i = 0; i < n; ++i) {
            if (i >= depth - k) break;
            T* to = out + (k + i) * out_stride;
            int64_t left = room + (depth - 1 - k - i) * out_stride;
            if (left >= width)
                store(to, v[i]);
            else
                store_first(to, v[i], left);
        }
    }
}

// out[k * rows + r] = from[k * depth_stride + r]: a few moves, where masks take longer.
template <class T, int rows>
void pack_few(const T* from, int64_t depth_stride, int64_t depth, T* out)
{
    for (int64_t k = 0; k < depth; ++k, from += depth_stride, out += rows)
        std::memcpy(out, from, rows * sizeof(T));
}

// out[k * out_stride + r] = from[k * depth_stride + r] for r < rows <= out_stride; zero behind.
template <class T>
void pack_straight(const T* from, int64_t depth_stride, int64_t rows, int64_t depth, T* out,
                   int64_t out_stride)
{
    constexpr int64_t width = lanes<T>;
    if (rows == 6 && out_stride == 6) return pack_few<T, 6>(from, depth_stride, depth, out);
    if (rows == 12 && out_stride == 12) return pack_few<T, 12>(from, depth_stride, depth, out);
    for (int64_t k = 0; k < depth; ++k, from += depth_stride, out += out_stride)
        for (int64_t r = 0; r < out_stride; r += width) {
            int64_t n = max64(0, min64(width, rows - r)), stored = min64(width, out_stride - r);
            Vec<T> v = n == width ? load(from + r) : load_first(from + r, n);
            if (stored == width)
                store(out + r, v);
            else
                store_first(out + r, v, stored);
        }
}

// A panel of `rows` rows of A or columns of B, padded with zeros to `out_stride`:
// out[k * out_stride + r] = from[r * row_stride + k * depth_stride].
template <class T>
void pack_panel(const T* from, int64_t row_stride, int64_t depth_stride, int64_t rows,
                int64_t depth, T* out, int64_t out_stride)
{
    if (row_stride == 1) return pack_straight(from, depth_stride, rows, depth, out, out_stride);
    if (depth_stride == 1) {
        for (int64_t r = (out_stride - 1) / lanes<T> * lanes<T>; r >= 0; r -= lanes<T>)
            pack_transposed(from + r * row_stride, row_stride, max64(0, rows - r), depth, out + r,
                            out_stride, out_stride - r);
        return;
    }
    for (int64_t k = 0; k < depth; ++k, out += out_stride)
        for (int64_t r = 0; r < out_stride; ++r)
            out[r] = r < rows ? from[r * row_stride + k * depth_stride] : T{};
}

// `rows` rows of A, from a whole tile on, in tiles of which none reaches beyond `strip` rows. Rows
// that are contiguous are read a few k at a time: their cache lines, often a multiple of 4 KB
// apart, are then in the first-level cache still when the next tile needs the rest of them.
template <class T>
void pack_rows(const T* a, int64_t row_stride, int64_t depth_stride, int64_t rows, int64_t depth,
               int64_t strip, T* out)
{
    int64_t chunk = row_stride == 1 ? 8 : depth;
    for (int64_t k = 0; k < depth; k += chunk)
        for (int64_t i = 0; i < rows;) {
            int height = tile_rows_for(min64(strip - i % strip, rows - i));
            pack_panel(a + i * row_stride + k * depth_stride, row_stride, depth_stride, height,
                       min64(chunk, depth - k), out + i * depth + k * height, height);
            i += height;
        }
}

// `columns` columns of B, from a whole panel on, in panels of `width`. Rows far from each other are
// fetched some k ahead, which no processor does by itself.
template <class T>
void pack_columns(const T* b, int64_t depth_stride, int64_t column_stride, int64_t columns,
                  int64_t depth, T* out, int64_t width = tile_columns<T>)
{
    constexpr int64_t rows_ahead = 8;
    int64_t whole = column_stride == 1 ? columns / width * width : 0;
    for (int64_t k = 0; k < depth && whole > 0; ++k)
        for (int64_t j = 0; j < whole; j += width)
            for (int64_t v = 0; v < width; v += lanes<T>) {
                const T* from = b + k * depth_stride + j + v;
                __builtin_prefetch(from + rows_ahead * depth_stride);
                store(out + j * depth + k * width + v, load(from));
            }
    for (int64_t j = whole; j < columns; j += width)
        pack_panel(b + j * column_stride, column_stride, depth_stride, min64(width, columns - j),
                   depth, out + j * depth, width);
}

}  // namespace needle::NEEDLE_TARGET
