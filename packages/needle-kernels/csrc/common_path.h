// What small operations do most often, without Python between the call and the kernel.
//
// Each function returns None (or False) where its arguments are not what it is for; the caller
// then goes the long way, which makes every check and takes everything else. An array is an
// NDArray of the bound device (pyarray.h).
#pragma once

#include <pybind11/pybind11.h>

namespace needle {

// elementwise(kernel, a[, b]): the result as a new array. For arrays that broadcast, or one of them
// a Python number, promoted as NumPy 2 does; of bools alone only a logical kernel.
//
// elementwise_in_place(kernel, target, other): whether it wrote the result to target; not where
// these are not what elementwise() takes, or the target is not one whole run of memory of the
// result's shape and dtype apart from other's.
//
// fill(target, number): whether it wrote a Python number to every element; not where elements share
// a place, or the dtype does not hold the number.
//
// copy(a, dtype, row_major): a new array, row-major or else in the memory order of a.
//
// copy_into(target, a): whether it wrote a, broadcast and cast, to target; not where elements of
// target share a place or may lie in memory of a.
//
// reduce(kernel, a, to, of): what a kernel makes of the layout `of` (shape, strides) of the
// elements of a, as a new array with the layout `to`.
//
// matmul(a, b, bias): a @ b + bias as a new array. For two matrices and None or one row, of sizes
// that fit and one float dtype.
//
// join(arrays, axis, is_new): the arrays one after the other along an axis, or side by side along
// one that is new. For a list of arrays of one dtype and shape but for that axis, and an int that
// is an axis.
//
// update(kernel, columns, scalars): whether it ran an optimizer kernel, and marked what that wrote
// as written. For columns that are lists of compact arrays of one float dtype; sgd's momenta may be
// None.
//
// sum_squares(arrays): the sum of the squares of all elements, a float. For a list or tuple of
// compact arrays of one float dtype.
//
// outside(ids, count): the first of these int64 ids that is not in 0 .. count - 1, or None.
void add_common_paths(pybind11::module_& m);

}  // namespace needle
