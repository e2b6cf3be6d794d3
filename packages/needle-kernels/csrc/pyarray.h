// NDArrays from C++: their parts, and new ones.
#pragma once

#include <pybind11/pybind11.h>

#include "call.h"

namespace needle {

// NDArray is a Python class with __slots__. Where they lie in an object is looked up here once, so
// that reading or setting one later is a load or a store.
//   type: NDArray; device: the Device whose kernels are this extension's; dtypes: numpy's, in the
//   order of DType; promote: two of them -> the one that holds both; dense_strides: (shape,
//   strides)
//   -> the strides of a new array in that order.
void bind_arrays(const pybind11::type& type, const pybind11::object& device,
                 const pybind11::tuple& dtypes, const pybind11::object& promote,
                 const pybind11::object& dense_strides);

// The parts of an NDArray, in the order of wrap()'s arguments.
enum class Part { handle, shape, strides, offset, dtype, device };
constexpr int part_count = 6;

// What bind_arrays() was given. Its references are kept until the process ends.
struct Bound {
    PyTypeObject* type;
    Py_ssize_t place[part_count];
    PyObject* device;
    PyObject* dtypes[6];
    PyTypeObject* scalars[6];  // numpy's scalar type of each dtype
    DType promoted[6][6];
    PyObject* dense_strides;
    PyObject* zero;
};
extern Bound bound;

inline bool is_array(PyObject* object) { return Py_TYPE(object) == bound.type; }

inline PyObject*& part(PyObject* array, Part which)
{
    return *reinterpret_cast<PyObject**>(reinterpret_cast<char*>(array) +
                                         bound.place[static_cast<int>(which)]);
}

// Raises AttributeError where a slot was never set.
void check_parts(PyObject* array);

// Whether it is an NDArray of the device whose kernels are this extension's.
inline bool is_local(PyObject* object)
{
    return is_array(object) && part(object, Part::device) == bound.device;
}

inline pybind11::object as_object(PyObject* object)
{
    return pybind11::reinterpret_borrow<pybind11::object>(object);
}

DType dtype_of(PyObject* kind);
bool is_float(DType dtype);

int read_sizes(PyObject* tuple, int64_t* out);
pybind11::object sizes_tuple(const int64_t* sizes, int rank);

// The numbers of a tuple as doubles; throws TypeError, in the name of a kernel, where one is none.
void read_numbers(PyObject* tuple, const char* kernel, double* out);

// A view of the storage `handle` with this layout.
void read_parts(PyObject* handle, PyObject* shape, PyObject* strides, PyObject* offset,
                Array& array);

// Any object with the slots _handle, _shape, _strides and _offset.
void read_array(pybind11::handle object, Array& array);

// The float or int in `value` as one element of `dtype`, repeated over the shape of `like`; it lies
// in `slot`.
void read_immediate(pybind11::handle value, DType dtype, const Array& like, void* slot,
                    Array& array);

// An NDArray with memory of its own for the layout in `out`, whose `data` is set to it. `shape` and
// `strides` are that layout's tuples. Throws OutOfMemory.
pybind11::object allocate_array(Array& out, pybind11::object shape, pybind11::object strides,
                                PyObject* device);

// An NDArray that shows the memory of `array` in another layout, unchecked.
pybind11::object view_of(PyObject* array, pybind11::object shape, pybind11::object strides,
                         pybind11::object offset);

// The strides of a new array with the shape and memory order of `model`; `like` is what read_array
// made of it.
pybind11::object dense_strides(PyObject* model, const Array& like);

// wrap(handle, shape, strides, offset, dtype, device): an NDArray of these parts, unchecked.
// empty(shape, dtype, device): a new row-major NDArray in the CPU's memory, contents arbitrary.
// empty_like(model, dtype): the same with the shape, device and memory order of `model`.
// version(data): the count of in-place writes to an array's memory; of a tuple of data, a tuple.
void add_arrays(pybind11::module_& m);

}  // namespace needle
