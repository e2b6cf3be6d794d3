// Indexing: what array[index] shows of an array, without a copy.
#pragma once

#include <pybind11/pybind11.h>

namespace needle {

// index_view(shape, strides, offset, index): those three of array[index], for ints, slices,
// Ellipsis and None. Raises IndexError.
//
// index_array(array, index): that view of an NDArray.
void add_indexing(pybind11::module_& m);

}  // namespace needle
