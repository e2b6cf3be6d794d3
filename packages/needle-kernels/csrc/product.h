// One matrix product, C = act(C? + A B + bias), with any strides but along C's rows.
#pragma once

#include "tile.h"

namespace needle::NEEDLE_TARGET {

template <class T>
struct Product {
    int64_t rows, columns, depth;
    const T* a;
    int64_t a_row, a_depth;  // strides
    const T* b;
    int64_t b_depth, b_column;
    T* c;
    int64_t c_row;
    const T* bias;
    Activation activation;
    bool accumulate;
    int64_t a_bytes;         // of all A of the call, for each thread
    bool past_caches;        // C may be written so: stream_store
    double* sums = nullptr;  // of B's columns, where they are wanted too
};

}  // namespace needle::NEEDLE_TARGET
