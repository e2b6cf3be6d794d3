// Products with a B that is packed once and used many times: the weights of a recurrence.
//
//     T* buffer: packed_elements<T>(depth, columns) elements of the workspace
//     PackedB<T> b = pack_b(from, depth_stride, column_stride, depth, columns, buffer);
//     for each step: multiply_packed({rows, h, H, c, N}, b);
//
// Neither function uses threads: a caller gives each thread columns of its own.
#pragma once

#include "pack.h"

namespace needle::NEEDLE_TARGET {

template <class T>
struct PackedB {
    const T* panels;  // [panel][k][tile_columns], owned by the caller
    int64_t depth, columns;
};

template <class T>
int64_t packed_elements(int64_t depth, int64_t columns)
{
    return ceil_div(columns, tile_columns<T>) * tile_columns<T> * depth;
}

// B[k, j] = b[k * depth_stride + j * column_stride], copied to out.
template <class T>
PackedB<T> pack_b(const T* b, int64_t depth_stride, int64_t column_stride, int64_t depth,
                  int64_t columns, T* out)
{
    pack_columns(b, depth_stride, column_stride, columns, depth, out);
    return {out, depth, columns};
}

// The left side and the result of C[i, j] = act(C[i, j]? + sum_k A[i, k] B[k, j]).
template <class T>
struct PackedProduct {
    int64_t rows;
    const T* a;  // k is contiguous
    int64_t a_row;
    T* c;  // columns are contiguous
    int64_t c_row;
    Activation activation = no_activation;
    bool accumulate = false;
};

template <class T>
void multiply_packed(const PackedProduct<T>& p, const PackedB<T>& b)
{
    constexpr int64_t width = tile_columns<T>;
    constexpr int rows_ahead = 32;  // weights that exceed a core's cache come from far each time
    for (int64_t j = 0; j < b.columns; j += width) {
        Segment<T> segment{nullptr, b.panels + j * b.depth, b.depth};
        Tile<T> tile{
            .segments = &segment,
            .segment_count = 1,
            .a_stride = p.a_row,
            .b_stride = width,
            .c = nullptr,
            .c_stride = p.c_row,
            .columns = min64(width, b.columns - j),
            .bias = nullptr,
            .activation = p.activation,
            .accumulate = p.accumulate,
            .finish = true,
        };
        for (int64_t i = 0; i < p.rows;) {
            int height = tile_rows_for(p.rows - i);
            segment.a = p.a + i * p.a_row;
            tile.c = p.c + i * p.c_row + j;
            if (p.accumulate) tile.ahead = {tile.c, height, tile.columns, p.c_row};
            run_tile_columns<T, RowOrder::k_contiguous, rows_ahead>(height, tile);
            i += height;
        }
    }
}

}  // namespace needle::NEEDLE_TARGET
