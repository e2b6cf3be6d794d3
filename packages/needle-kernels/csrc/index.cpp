// gather, scatter_add and one_hot: rows of a table chosen by ids.
#include "families.h"
#include "loops.h"

namespace needle::NEEDLE_TARGET {

namespace {

constexpr int64_t grain = 32768;  // elements that pay for a thread

// A matrix with its strides in elements.
template <class T>
struct Matrix {
    T* data;
    int64_t rows, columns, row_stride, column_stride;

    explicit Matrix(const Array& array)
        : data(array.as<T>()),
          rows(array.shape[0]),
          columns(array.shape[1]),
          row_stride(array.strides[0]),
          column_stride(array.strides[1])
    {
    }
    T* at(int64_t row, int64_t column) const
    {
        return data + row * row_stride + column * column_stride;
    }
};

struct Ids {
    const int64_t* data;
    int64_t count, stride;

    explicit Ids(const Array& array)
        : data(array.as<const int64_t>()), count(array.shape[0]), stride(array.strides[0])
    {
    }
    int64_t operator[](int64_t i) const { return data[i * stride]; }
};

template <class T>
void copy_row(T* out, int64_t out_stride, const T* in, int64_t in_stride, int64_t n)
{
    if (out_stride == 1 && in_stride == 1) {
        std::memcpy(out, in, static_cast<size_t>(n) * sizeof(T));
        return;
    }
    for (int64_t i = 0; i < n; ++i) out[i * out_stride] = in[i * in_stride];
}

// Fetches a row that no processor foresees.
template <class T>
void fetch_row(const T* row, int64_t stride, int64_t n)
{
    constexpr int64_t line = 64 / static_cast<int64_t>(sizeof(T));
    if (stride != 1) return;
    for (int64_t i = 0; i < n; i += line) __builtin_prefetch(row + i);
}

template <class T>
void gather(const Call& call)
{
    Matrix<T> out(call.arrays[0]), table(call.arrays[1]);
    Ids ids(call.arrays[2]);
    parallel_for(out.rows, ceil_div(grain, max64(1, out.columns)), [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
            if (r + 1 < end) fetch_row(table.at(ids[r + 1], 0), table.column_stride, out.columns);
            copy_row(out.at(r, 0), out.column_stride, table.at(ids[r], 0), table.column_stride,
                     out.columns);
        }
    });
}

void run_gather(const Call& call)
{
    switch (item_size(call.arrays[0].dtype)) {
        case 1: gather<uint8_t>(call); break;
        case 4: gather<int32_t>(call); break;
        default: gather<int64_t>(call); break;
    }
}

template <class T>
void add_row(T* out, int64_t out_stride, const T* in, int64_t in_stride, int64_t n)
{
    if (out_stride == 1 && in_stride == 1) {
        NEEDLE_VECTORIZE
        for (int64_t i = 0; i < n; ++i) out[i] += in[i];
    } else {
        for (int64_t i = 0; i < n; ++i) out[i * out_stride] += in[i * in_stride];
    }
}

// Every element adds up its rows in the order of ids: threads share columns, or, where there are
// few, rows of the table, never one element.
template <class T>
void scatter_add(const Call& call)
{
    constexpr int64_t cache_line = 64 / sizeof(T);
    Matrix<T> out(call.arrays[0]), src(call.arrays[1]);
    Ids ids(call.arrays[2]);
    auto add = [&](int64_t r, int64_t first, int64_t n) {
        add_row(out.at(ids[r], first), out.column_stride, src.at(r, first), src.column_stride, n);
    };
    if (out.columns >= 4 * cache_line) {
        int64_t grain_columns = max64(cache_line, ceil_div(grain, max64(1, ids.count)));
        parallel_shares(out.columns, grain_columns, cache_line, [&](int64_t begin, int64_t end) {
            for (int64_t r = 0; r < ids.count; ++r) add(r, begin, end - begin);
        });
        return;
    }
    int64_t rows_of_grain = ceil_div(grain * out.rows, max64(1, ids.count * out.columns));
    parallel_shares(out.rows, rows_of_grain, cache_line, [&](int64_t begin, int64_t end) {
        for (int64_t r = 0; r < ids.count; ++r)
            if (ids[r] >= begin && ids[r] < end) add(r, 0, out.columns);
    });
}

void run_scatter_add(const Call& call)
{
    if (call.arrays[0].dtype == DType::float32)
        scatter_add<float>(call);
    else
        scatter_add<double>(call);
}

template <class T>
void one_hot(const Call& call)
{
    Matrix<T> out(call.arrays[0]);
    Ids ids(call.arrays[1]);
    parallel_for(out.rows, ceil_div(grain, max64(1, out.columns)), [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
            if (out.column_stride == 1)
                std::memset(out.at(r, 0), 0, static_cast<size_t>(out.columns) * sizeof(T));
            else
                for (int64_t c = 0; c < out.columns; ++c) *out.at(r, c) = T(0);
            *out.at(r, ids[r]) = T(1);
        }
    });
}

void run_one_hot(const Call& call)
{
    switch (call.arrays[0].dtype) {
        case DType::float32: one_hot<float>(call); break;
        case DType::float64: one_hot<double>(call); break;
        case DType::int32: one_hot<int32_t>(call); break;
        case DType::int64: one_hot<int64_t>(call); break;
        default: one_hot<uint8_t>(call); break;
    }
}

}  // namespace

void add_index(Table& table)
{
    table[Kernel::gather] = {run_gather};
    table[Kernel::scatter_add] = {run_scatter_add};
    table[Kernel::one_hot] = {run_one_hot};
}

}  // namespace needle::NEEDLE_TARGET
