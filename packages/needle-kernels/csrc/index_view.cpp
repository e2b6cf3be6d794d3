#include "index_view.h"

#include <cstdint>
#include <string>

#include "call.h"
#include "fast_function.h"
#include "pyarray.h"

namespace py = pybind11;

namespace needle {

namespace {

// The layout of array[index], made entry by entry from the layout of the array.
class IndexView {
public:
    IndexView(PyObject* shape, PyObject* strides, int64_t start) : shape_(shape), offset_(start)
    {
        from_rank_ = read_sizes(shape, from_shape_);
        read_sizes(strides, from_strides_);
        if (PyErr_Occurred() != nullptr) throw py::error_already_set();
    }

    void apply(PyObject* index)
    {
        if (!PyTuple_Check(index)) return apply(&index, 1);
        apply(&PyTuple_GET_ITEM(index, 0), PyTuple_GET_SIZE(index));
    }

    py::object sizes() const { return sizes_tuple(to_shape_, to_rank_); }
    py::object steps() const { return sizes_tuple(to_strides_, to_rank_); }
    int64_t offset() const { return offset_; }

private:
    void apply(PyObject* const* entries, Py_ssize_t count)
    {
        Py_ssize_t used = 0, ellipses = 0;
        for (Py_ssize_t i = 0; i < count; ++i) {
            ellipses += entries[i] == Py_Ellipsis;
            used += entries[i] != Py_Ellipsis && entries[i] != Py_None;
        }
        if (used > from_rank_ || ellipses > 1)
            throw py::index_error("index: too many entries: got " + std::to_string(used) + " and " +
                                  std::to_string(ellipses) + " Ellipsis for shape " +
                                  std::string(py::repr(shape_)) + ": need at most " +
                                  std::to_string(from_rank_) + " and one Ellipsis");
        Py_ssize_t left_out = from_rank_ - used;  // axes that Ellipsis or the end stand for
        for (Py_ssize_t i = 0; i < count; ++i) {
            if (entries[i] == Py_Ellipsis)
                for (; left_out > 0; --left_out) keep_axis();
            else if (entries[i] == Py_None)
                add_axis(1, 0);
            else if (PySlice_Check(entries[i]))
                cut_axis(entries[i]);
            else
                drop_axis(entries[i]);
        }
        for (; left_out > 0; --left_out) keep_axis();
    }

    void add_axis(int64_t size, int64_t stride)
    {
        if (to_rank_ == max_rank)
            throw py::index_error("index: too many axes: got more than 16: at most 16");
        to_shape_[to_rank_] = size;
        to_strides_[to_rank_++] = stride;
    }

    void keep_axis()
    {
        add_axis(from_shape_[axis_], from_strides_[axis_]);
        ++axis_;
    }

    void cut_axis(PyObject* slice)
    {
        Py_ssize_t start, stop, step;
        if (PySlice_Unpack(slice, &start, &stop, &step) < 0) throw py::error_already_set();
        Py_ssize_t n = PySlice_AdjustIndices(from_shape_[axis_], &start, &stop, step);
        // An empty slice starts nowhere, and must not move the offset out of the storage.
        if (n > 0) offset_ += start * from_strides_[axis_];
        // Only where there is at most one element, and no step is used, can this be too large.
        int64_t stride = 0;
        if (__builtin_mul_overflow(from_strides_[axis_], step, &stride)) stride = 1;
        add_axis(n, stride);
        ++axis_;
    }

    void drop_axis(PyObject* entry)
    {
        int64_t size = from_shape_[axis_], place = number(entry);
        if (place < -size || place >= size)
            throw py::index_error("index: out of range: got " + std::string(py::str(entry)) +
                                  " for axis " + std::to_string(axis_) + " of size " +
                                  std::to_string(size) + ": need " + std::to_string(-size) +
                                  " <= index < " + std::to_string(size));
        offset_ += (place < 0 ? place + size : place) * from_strides_[axis_];
        ++axis_;
    }

    // The integer in `entry`; one too large for 64 bits becomes the largest.
    int64_t number(PyObject* entry) const
    {
        bool is_integer = PyLong_CheckExact(entry);
        if (!is_integer && PyIndex_Check(entry) && !PyBool_Check(entry))
            is_integer = py::getattr(entry, "ndim", py::int_(0)).equal(py::int_(0));
        if (!is_integer)
            throw py::index_error("index: unsupported entry: got " +
                                  std::string(py::str(py::type::of(entry).attr("__name__"))) +
                                  " for axis " + std::to_string(axis_) +
                                  ": need ints, slices, Ellipsis or None (see gather for arrays of "
                                  "ids)");
        Py_ssize_t value = PyNumber_AsSsize_t(entry, nullptr);
        if (value == -1 && PyErr_Occurred() != nullptr) throw py::error_already_set();
        return value;
    }

    PyObject* shape_;
    int from_rank_, to_rank_ = 0, axis_ = 0;
    int64_t from_shape_[max_rank], from_strides_[max_rank];
    int64_t to_shape_[max_rank], to_strides_[max_rank];
    int64_t offset_;
};

PyObject* call_index_view(PyObject*, PyObject* const* arguments, Py_ssize_t count)
{
    if (count != 4 || !PyTuple_Check(arguments[0]) || !PyTuple_Check(arguments[1]) ||
        PyTuple_GET_SIZE(arguments[0]) != PyTuple_GET_SIZE(arguments[1])) {
        PyErr_SetString(PyExc_TypeError, "index_view: need shape, strides, offset and an index");
        return nullptr;
    }
    return guarded([&] {
        IndexView view(arguments[0], arguments[1], PyLong_AsLongLong(arguments[2]));
        view.apply(arguments[3]);
        return py::make_tuple(view.sizes(), view.steps(), view.offset()).release().ptr();
    });
}

PyObject* call_index_array(PyObject*, PyObject* const* arguments, Py_ssize_t count)
{
    if (count != 2 || !PyObject_TypeCheck(arguments[0], bound.type)) {
        PyErr_SetString(PyExc_TypeError, "index_array: need an NDArray and an index");
        return nullptr;
    }
    return guarded([&] {
        PyObject* array = arguments[0];
        check_parts(array);
        IndexView view(part(array, Part::shape), part(array, Part::strides),
                       PyLong_AsLongLong(part(array, Part::offset)));
        view.apply(arguments[1]);
        return view_of(array, view.sizes(), view.steps(), py::int_(view.offset())).release().ptr();
    });
}

}  // namespace

void add_indexing(py::module_& m)
{
    add_function(m, "index_view", call_index_view,
                 "index_view(shape: tuple, strides: tuple, offset: int, index: object) "
                 "-> tuple[tuple, tuple, int]");
    add_function(m, "index_array", call_index_array,
                 "index_array(array: NDArray, index: object) -> NDArray");
}

}  // namespace needle
