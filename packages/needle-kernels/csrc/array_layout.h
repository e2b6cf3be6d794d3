// Arithmetic on the shapes and strides of array records.
#pragma once

#include "call.h"
#include "storage.h"

namespace needle {

// The shape that `count` arrays broadcast to, or false where they do not.
inline bool broadcast_shape(const Array* arrays, int count, Array& out)
{
    out.rank = 0;
    for (int i = 0; i < count; ++i)
        if (arrays[i].rank > out.rank) out.rank = arrays[i].rank;
    for (int axis = 0; axis < out.rank; ++axis) {
        int64_t size = 1;
        for (int i = 0; i < count; ++i) {
            int own = axis - (out.rank - arrays[i].rank);
            int64_t n = own < 0 ? 1 : arrays[i].shape[own];
            if (n != 1 && size != 1 && n != size) return false;
            if (n != 1) size = n;
        }
        out.shape[axis] = size;
    }
    return true;
}

inline bool same_shape(const Array& a, const Array& b)
{
    if (a.rank != b.rank) return false;
    for (int axis = 0; axis < a.rank; ++axis)
        if (a.shape[axis] != b.shape[axis]) return false;
    return true;
}

// Shows `array` in the shape of `out`, with stride 0 along repeated axes. Leading axes of size 1
// that `out` lacks go.
inline void expand(Array& array, const Array& out)
{
    int added = out.rank - array.rank;
    if (added < 0) {  // upwards, or an axis would overwrite one still to be moved
        for (int axis = 0; axis < out.rank; ++axis) {
            array.strides[axis] = array.strides[axis - added];
            array.shape[axis] = array.shape[axis - added];
        }
        added = 0;
    }
    for (int axis = out.rank - 1; axis >= 0; --axis) {
        bool repeats = axis < added || array.shape[axis - added] != out.shape[axis];
        array.strides[axis] = repeats ? 0 : array.strides[axis - added];
        array.shape[axis] = out.shape[axis];
    }
    array.rank = out.rank;
}

inline void set_compact_strides(Array& array)
{
    int64_t step = 1;
    for (int axis = array.rank - 1; axis >= 0; --axis) {
        array.strides[axis] = step;
        if (array.shape[axis] > 1) step *= array.shape[axis];
    }
}

inline bool is_compact(const Array& array)
{
    int64_t step = 1;
    for (int axis = array.rank - 1; axis >= 0; --axis) {
        if (array.strides[axis] != step) return false;
        if (array.shape[axis] > 1) step *= array.shape[axis];
    }
    return true;
}

// How much memory a kernel goes through for `array`: a cache line for each element at most, and no
// more than lies between the first and the last. Repeated elements count.
inline int64_t bytes_reached(const Array& array)
{
    constexpr int64_t line = 64;
    const int64_t item = item_size(array.dtype);
    int64_t size = 1, last = 0;
    for (int axis = 0; axis < array.rank; ++axis) {
        const int64_t stride = array.strides[axis];
        size *= array.shape[axis];
        last += (array.shape[axis] - 1) * (stride < 0 ? -stride : stride);
    }
    if (size == 0) return 0;
    const int64_t span = (last + 1) * item;
    return span < size * item ? size * item : span < size * line ? span : size * line;
}

// Whether `array` can be shown in the shape of `target`; leading axes of size 1 may go.
inline bool broadcasts_to(const Array& array, const Array& target)
{
    for (int axis = 1; axis <= array.rank; ++axis) {
        int64_t size = array.shape[array.rank - axis];
        if (size != 1 && (axis > target.rank || size != target.shape[target.rank - axis]))
            return false;
    }
    return true;
}

// Whether elements share a place.
inline bool repeats(const Array& array)
{
    for (int axis = 0; axis < array.rank; ++axis)
        if (array.strides[axis] == 0 && array.shape[axis] > 1) return true;
    return false;
}

// Whether the memory between the ends of the two has a byte in common.
inline bool may_overlap(const Array& a, const Array& b)
{
    struct Span {
        explicit Span(const Array& array)
        {
            int64_t low = 0, high = 1;
            for (int axis = 0; axis < array.rank; ++axis) {
                int64_t reach = (array.shape[axis] - 1) * array.strides[axis];
                (reach < 0 ? low : high) += reach;
                if (array.shape[axis] == 0) is_empty = true;
            }
            begin = array.as<char>() + low * item_size(array.dtype);
            end = array.as<char>() + high * item_size(array.dtype);
        }
        const char *begin, *end;
        bool is_empty = false;
    };
    Span one(a), other(b);
    return !one.is_empty && !other.is_empty && one.begin < other.end && other.begin < one.end;
}

}  // namespace needle
