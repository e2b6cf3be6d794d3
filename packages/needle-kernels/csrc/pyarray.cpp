#include "pyarray.h"

#include <structmember.h>

#include <cstdint>
#include <string>
#include <utility>

#include "array_layout.h"
#include "fast_function.h"
#include "launch.h"
#include "pystorage.h"

namespace py = pybind11;

namespace needle {

Bound bound{};

namespace {

constexpr const char* part_names[] = {"_handle", "_shape", "_strides",
                                      "_offset", "_dtype", "_device"};

py::object new_array(py::object handle, py::object shape, py::object strides, py::object offset,
                     py::object dtype, py::object device)
{
    PyObject* array = bound.type->tp_alloc(bound.type, 0);
    if (array == nullptr) throw py::error_already_set();
    part(array, Part::handle) = handle.release().ptr();
    part(array, Part::shape) = shape.release().ptr();
    part(array, Part::strides) = strides.release().ptr();
    part(array, Part::offset) = offset.release().ptr();
    part(array, Part::dtype) = dtype.release().ptr();
    part(array, Part::device) = device.release().ptr();
    return py::reinterpret_steal<py::object>(array);
}

// The number of elements; throws OutOfMemory where there are more than any memory holds, not
// counting axes of size 0, so that strides fit too.
int64_t checked_size(const Array& array)
{
    int64_t size = 1;
    bool fits = true, is_empty = false;
    for (int axis = 0; axis < array.rank; ++axis) {
        if (array.shape[axis] == 0)
            is_empty = true;
        else
            fits &= !__builtin_mul_overflow(size, array.shape[axis], &size);
    }
    if (!fits || size >= too_many_elements) throw OutOfMemory(Device::cpu);
    return is_empty ? 0 : size;
}

py::object empty(PyObject* shape, PyObject* kind, PyObject* device)
{
    Array out;
    out.dtype = dtype_of(kind);
    out.rank = read_sizes(shape, out.shape);
    if (PyErr_Occurred() != nullptr) {
        if (PyErr_ExceptionMatches(PyExc_OverflowError) == 0) throw py::error_already_set();
        PyErr_Clear();
        throw OutOfMemory(Device::cpu);
    }
    set_compact_strides(out);
    return allocate_array(out, as_object(shape), sizes_tuple(out.strides, out.rank), device);
}

py::object empty_like(PyObject* model, PyObject* kind)
{
    Array out;
    read_array(model, out);
    out.dtype = dtype_of(kind);
    py::object strides = dense_strides(model, out);
    return allocate_array(out, as_object(part(model, Part::shape)), strides,
                          part(model, Part::device));
}

PyObject* call_wrap(PyObject*, PyObject* const* parts, Py_ssize_t count)
{
    if (count != part_count) {
        PyErr_SetString(PyExc_TypeError,
                        "wrap: need handle, shape, strides, offset, dtype, device");
        return nullptr;
    }
    return guarded([&] {
        return new_array(as_object(parts[0]), as_object(parts[1]), as_object(parts[2]),
                         as_object(parts[3]), as_object(parts[4]), as_object(parts[5]))
            .release()
            .ptr();
    });
}

PyObject* call_empty(PyObject*, PyObject* const* arguments, Py_ssize_t count)
{
    if (count != 3) {
        PyErr_SetString(PyExc_TypeError, "empty: need shape, dtype, device");
        return nullptr;
    }
    return guarded([&] { return empty(arguments[0], arguments[1], arguments[2]).release().ptr(); });
}

PyObject* call_empty_like(PyObject*, PyObject* const* arguments, Py_ssize_t count)
{
    if (count != 2 || !is_array(arguments[0])) {
        PyErr_SetString(PyExc_TypeError, "empty_like: need an NDArray and a dtype");
        return nullptr;
    }
    return guarded([&] { return empty_like(arguments[0], arguments[1]).release().ptr(); });
}

py::object version_of(PyObject* data)
{
    if (PyTuple_Check(data)) {
        py::tuple versions(PyTuple_GET_SIZE(data));
        for (size_t i = 0; i < versions.size(); ++i)
            versions[i] = version_of(PyTuple_GET_ITEM(data, static_cast<Py_ssize_t>(i)));
        return versions;
    }
    if (!PyObject_TypeCheck(data, bound.type)) throw py::type_error("version: need NDArrays");
    check_parts(data);
    return py::int_(storage_of(part(data, Part::handle)).version);
}

PyObject* call_version(PyObject*, PyObject* const* arguments, Py_ssize_t count)
{
    if (count != 1) {
        PyErr_SetString(PyExc_TypeError, "version: need an NDArray or a tuple of them");
        return nullptr;
    }
    return guarded([&] { return version_of(arguments[0]).release().ptr(); });
}

}  // namespace

void check_parts(PyObject* array)
{
    for (int i = 0; i < part_count; ++i)
        if (part(array, static_cast<Part>(i)) == nullptr)
            py::handle(array).attr(part_names[i]).ptr();
}

DType dtype_of(PyObject* kind)
{
    for (int i = 0; i < 6; ++i)
        if (bound.dtypes[i] == kind) return static_cast<DType>(i);
    throw py::type_error("dtype: need one of needle's own six");
}

bool is_float(DType dtype) { return dtype == DType::float32 || dtype == DType::float64; }

int read_sizes(PyObject* tuple, int64_t* out)
{
    Py_ssize_t n = PyTuple_GET_SIZE(tuple);
    if (n > max_rank)
        throw py::value_error("launch: rank: got " + std::to_string(n) + ": at most 16");
    for (Py_ssize_t i = 0; i < n; ++i) out[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(tuple, i));
    return static_cast<int>(n);
}

void read_numbers(PyObject* tuple, const char* kernel, double* out)
{
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(tuple); ++i) {
        PyObject* number = PyTuple_GET_ITEM(tuple, i);
        out[i] = PyFloat_AsDouble(number);
        if (out[i] != -1 || PyErr_Occurred() == nullptr) continue;
        if (PyErr_ExceptionMatches(PyExc_TypeError) == 0) throw py::error_already_set();
        PyErr_Clear();
        throw py::type_error(std::string(kernel) + ": a setting is not a number: got " +
                             Py_TYPE(number)->tp_name + ": need a float");
    }
}

py::object sizes_tuple(const int64_t* sizes, int rank)
{
    py::tuple tuple(rank);
    for (int i = 0; i < rank; ++i) tuple[static_cast<size_t>(i)] = py::int_(sizes[i]);
    return tuple;
}

void read_parts(PyObject* handle, PyObject* shape, PyObject* strides, PyObject* offset,
                Array& array)
{
    Storage& storage = storage_of(handle);
    array.rank = read_sizes(shape, array.shape);
    read_sizes(strides, array.strides);
    array.storage = &storage;
    array.dtype = storage.dtype();
    array.data =
        static_cast<char*>(storage.data()) + PyLong_AsLongLong(offset) * item_size(array.dtype);
}

py::object allocate_array(Array& out, py::object shape, py::object strides, PyObject* device)
{
    py::object handle = make_storage(checked_size(out), out.dtype);
    out.storage = &storage_of(handle.ptr());
    out.data = out.storage->data();
    return new_array(std::move(handle), std::move(shape), std::move(strides), as_object(bound.zero),
                     as_object(bound.dtypes[static_cast<int>(out.dtype)]), as_object(device));
}

py::object view_of(PyObject* array, py::object shape, py::object strides, py::object offset)
{
    return new_array(as_object(part(array, Part::handle)), std::move(shape), std::move(strides),
                     std::move(offset), as_object(part(array, Part::dtype)),
                     as_object(part(array, Part::device)));
}

py::object dense_strides(PyObject* model, const Array& like)
{
    py::object strides = as_object(part(model, Part::strides));
    if (is_compact(like)) return strides;
    return py::handle(bound.dense_strides)(as_object(part(model, Part::shape)), strides);
}

void bind_arrays(const py::type& type, const py::object& device, const py::tuple& dtypes,
                 const py::object& promote, const py::object& dense_strides)
{
    bound.type = reinterpret_cast<PyTypeObject*>(py::object(type).release().ptr());
    for (int i = 0; i < part_count; ++i) {
        py::object place = type.attr(part_names[i]);
        if (!Py_IS_TYPE(place.ptr(), &PyMemberDescr_Type))
            throw py::type_error(std::string("bind_arrays: not a slot: ") + part_names[i]);
        bound.place[i] = reinterpret_cast<PyMemberDescrObject*>(place.ptr())->d_member->offset;
    }
    bound.device = py::object(device).release().ptr();
    for (size_t i = 0; i < 6; ++i) {
        bound.dtypes[i] = py::object(dtypes[i]).release().ptr();
        py::object scalar = py::object(dtypes[i]).attr("type");
        bound.scalars[i] = reinterpret_cast<PyTypeObject*>(scalar.release().ptr());
    }
    for (size_t i = 0; i < 6; ++i)
        for (size_t j = 0; j < 6; ++j)
            bound.promoted[i][j] = dtype_of(promote(dtypes[i], dtypes[j]).ptr());
    bound.dense_strides = py::object(dense_strides).release().ptr();
    bound.zero = py::int_(0).release().ptr();
}

void read_array(py::handle object, Array& array)
{
    PyObject* parts[4] = {};
    for (int i = 0; i < 4 && is_array(object.ptr()); ++i)
        parts[i] = part(object.ptr(), static_cast<Part>(i));
    py::object owners[4];
    for (int i = 0; i < 4; ++i) {
        if (parts[i] != nullptr) continue;  // another class, or a slot that was never set
        owners[i] = object.attr(part_names[i]);
        parts[i] = owners[i].ptr();
    }
    read_parts(parts[0], parts[1], parts[2], parts[3], array);
}

void read_immediate(py::handle value, DType dtype, const Array& like, void* slot, Array& array)
{
    switch (dtype) {
        case DType::float32:
            *static_cast<float*>(slot) = static_cast<float>(PyFloat_AsDouble(value.ptr()));
            break;
        case DType::float64: *static_cast<double*>(slot) = PyFloat_AsDouble(value.ptr()); break;
        case DType::int32:
            *static_cast<int32_t*>(slot) = static_cast<int32_t>(PyLong_AsLongLong(value.ptr()));
            break;
        case DType::int64: *static_cast<int64_t*>(slot) = PyLong_AsLongLong(value.ptr()); break;
        case DType::uint8:
            *static_cast<uint8_t*>(slot) = static_cast<uint8_t>(PyLong_AsLongLong(value.ptr()));
            break;
        case DType::boolean: *static_cast<bool*>(slot) = PyObject_IsTrue(value.ptr()) != 0; break;
    }
    if (PyErr_Occurred() != nullptr) throw py::error_already_set();
    array.data = slot;
    array.immediate = true;
    array.dtype = dtype;
    array.rank = like.rank;
    for (int i = 0; i < like.rank; ++i) {
        array.shape[i] = like.shape[i];
        array.strides[i] = 0;
    }
}

void add_arrays(py::module_& m)
{
    add_function(m, "wrap", call_wrap,
                 "wrap(handle: Storage, shape: tuple, strides: tuple, offset: int, "
                 "dtype: dtype, device: Device) -> NDArray");
    add_function(m, "empty", call_empty,
                 "empty(shape: tuple, dtype: dtype, device: Device) -> NDArray");
    add_function(m, "version", call_version, "version(data: NDArray | tuple) -> int | tuple");
    add_function(m, "empty_like", call_empty_like,
                 "empty_like(model: NDArray, dtype: dtype) -> NDArray");
}

}  // namespace needle
