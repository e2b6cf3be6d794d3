// NDArrays from C++: their parts, new ones, and element by element calls on the common path.
#pragma once

#include <pybind11/pybind11.h>

#include "call.h"

namespace needle {

// NDArray is a Python class with __slots__. Where they lie in an object is looked up here once, so
// that reading or setting one later is a load or a store.
//   type: NDArray; device: the Device whose kernels are this extension's; dtypes: numpy's, in the
//   order of DType; dense_strides: (shape, strides) -> the strides of a new array in that order.
void bind_arrays(const pybind11::type& type, const pybind11::object& device,
                 const pybind11::tuple& dtypes, const pybind11::object& dense_strides);

// Any object with the slots _handle, _shape, _strides and _offset.
void read_array(pybind11::handle object, Array& array);

// The float or int in `value` as one element of `dtype`, repeated over the shape of `like`; it lies
// in `slot`.
void read_immediate(pybind11::handle value, DType dtype, const Array& like, void* slot,
                    Array& array);

// wrap(handle, shape, strides, offset, dtype, device): an NDArray of these parts, unchecked.
pybind11::object wrap_function();

// empty(shape, dtype, device): a new row-major NDArray in the CPU's memory, contents arbitrary.
pybind11::object empty_function();

// empty_like(model, dtype): the same with the shape, device and memory order of `model`.
pybind11::object empty_like_function();

// outside(ids, count): the first of these int64 ids that is not in 0 .. count - 1, or None.
pybind11::object outside_function();

// update(kernel, columns, scalars): runs an optimizer kernel, and marks what it wrote as written;
// or returns False where this is not what this path is for: columns that are lists of compact
// NDArrays of the bound device and of one float dtype, or None.
pybind11::object update_function();

// sum_squares(arrays): the sum of the squares of all elements, or None where the arrays are not
// what this path is for: a list or tuple of compact NDArrays of the bound device and of one float
// dtype.
pybind11::object sum_squares_function();

// matmul(a, b, bias): a @ b + bias as a new NDArray, or None where they are not what this path is
// for: two matrices and None or one row, of sizes that fit and one float dtype, on the bound
// device.
pybind11::object matmul_function();

// reduce(kernel, a, to, of): what a kernel makes of the layout `of` (shape, strides) of the
// elements of a, as a new NDArray with the layout `to`; None unless a is an NDArray of the bound
// device.
pybind11::object reduce_function();

// join(arrays, axis, is_new): the arrays one after the other along an axis, or side by side along
// one that is new; None where they are not what this path is for: a list of NDArrays of the bound
// device, of one dtype and shape but for that axis, and an int that is an axis.
pybind11::object join_function();

// elementwise(kernel, a[, b]): the result as a new NDArray, or None where a and b are not what
// this path is for: NDArrays of the bound device of one dtype, float32 or float64, that broadcast,
// or one of them a number: a Python float or int, or numpy's scalar of that dtype. Logical kernels
// take NDArrays of bools, those that make integers of integers NDArrays of these too.
pybind11::object elementwise_function();

// elementwise_in_place(kernel, target, other): whether it wrote the result to target; not where
// these are not what elementwise() takes, or the target is not one whole run of memory apart from
// other's.
pybind11::object elementwise_in_place_function();

}  // namespace needle
