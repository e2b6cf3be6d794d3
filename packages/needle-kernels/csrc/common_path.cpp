#include "common_path.h"

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <utility>
#include <vector>

#include "array_layout.h"
#include "fast_function.h"
#include "launch.h"
#include "pyarray.h"
#include "pystorage.h"
#include "queue.h"

namespace py = pybind11;

namespace needle {

namespace {

constexpr int64_t unlocked_size = 8192;  // elements from which a kernel runs without the GIL

// Records for the arrays of an optimizer's call. They are the thread's and stay: memory that comes
// and goes at every step would be cut up by what lives longer. While they are in use no Python
// object may be made: the garbage collector might then run what comes back here.
std::vector<Array>& records()
{
    thread_local std::vector<Array> kept;
    return kept;
}

// Runs a kernel of the CPU; without the GIL where it works on many elements.
void run_kernel(int kernel, Call& call, int64_t elements)
{
    if (elements < unlocked_size) return launch(Device::cpu, kernel, call);
    py::gil_scoped_release unlocked;
    launch(Device::cpu, kernel, call);
}

// ---- ids

// Calls body(first element, count, stride) for each run along the last axis.
template <class Body>
void for_each_run(const Array& array, const Body& body)
{
    const auto* data = array.as<const int64_t>();
    int last = array.rank - 1;
    if (last < 0) return body(data, 1, 1);
    int64_t index[max_rank] = {};
    for (int64_t runs = array.size() / std::max<int64_t>(1, array.shape[last]); runs > 0; --runs) {
        body(data, array.shape[last], array.strides[last]);
        for (int axis = last - 1; axis >= 0; --axis) {
            data += array.strides[axis];
            if (++index[axis] < array.shape[axis]) break;
            data -= array.shape[axis] * array.strides[axis];
            index[axis] = 0;
        }
    }
}

// The first id that is not in 0 .. count - 1, or nullptr.
const int64_t* first_outside(const Array& ids, int64_t count)
{
    const int64_t* found = nullptr;
    auto limit = static_cast<uint64_t>(count);  // as unsigned, what is negative is too large
    for_each_run(ids, [&](const int64_t* id, int64_t n, int64_t stride) {
        bool outside = false;  // one flag, not a way out: most ids are right
        for (int64_t i = 0; i < n; ++i) outside |= static_cast<uint64_t>(id[i * stride]) >= limit;
        for (int64_t i = 0; outside && found == nullptr && i < n; ++i)
            if (static_cast<uint64_t>(id[i * stride]) >= limit) found = id + i * stride;
    });
    return found;
}

// ---- copies

// Whether this Python int is a number of an integer dtype.
bool fits(PyObject* number, DType dtype)
{
    int too_large = 0;
    int64_t value = PyLong_AsLongLongAndOverflow(number, &too_large);
    if (too_large != 0) return false;
    switch (dtype) {
        case DType::int32: return value >= INT32_MIN && value <= INT32_MAX;
        case DType::uint8: return value >= 0 && value <= UINT8_MAX;
        default: return dtype == DType::int64;
    }
}

// target[...] = number; false where this is not the common path.
bool fill(PyObject* target, PyObject* number)
{
    if (!is_local(target)) return false;
    Array operands[2];
    auto& [out, value] = operands;
    read_array(target, out);
    bool takes = is_float(out.dtype) ? PyFloat_CheckExact(number) || PyLong_CheckExact(number)
                                     : PyLong_CheckExact(number) && fits(number, out.dtype);
    if (!takes || repeats(out)) return false;
    double immediate = 0;
    read_immediate(number, out.dtype, out, &immediate, value);
    Call call{operands, 2, nullptr, 0, nullptr, nullptr, 0};
    run_kernel(static_cast<int>(Kernel::fill), call, out.size());
    ++out.storage->version;
    return true;
}

// A row-major copy of this dtype, or one in the same memory order.
py::object copy_array(PyObject* a, DType kind, bool row_major)
{
    Array operands[2];
    auto& [out, in] = operands;
    read_array(a, in);
    out.dtype = kind;
    out.rank = read_sizes(part(a, Part::shape), out.shape);
    py::object strides;
    if (row_major && !is_compact(in)) {
        set_compact_strides(out);
        strides = sizes_tuple(out.strides, out.rank);
    } else {
        strides = dense_strides(a, in);
        read_sizes(strides.ptr(), out.strides);
    }
    py::object copied =
        allocate_array(out, as_object(part(a, Part::shape)), std::move(strides), bound.device);
    Call call{operands, 2, nullptr, 0, nullptr, nullptr, 0};
    run_kernel(static_cast<int>(Kernel::copy), call, in.size());
    return copied;
}

// target[...] = a; false where this is not the common path.
bool copy_into(PyObject* target, PyObject* a)
{
    if (!is_local(target) || !is_local(a)) return false;
    Array operands[2];
    auto& [out, in] = operands;
    read_array(target, out);
    read_array(a, in);
    if (repeats(out) || !broadcasts_to(in, out) || may_overlap(in, out)) return false;
    expand(in, out);
    Call call{operands, 2, nullptr, 0, nullptr, nullptr, 0};
    run_kernel(static_cast<int>(Kernel::copy), call, out.size());
    ++out.storage->version;
    return true;
}

// ---- element by element

bool is_any(int kernel, std::initializer_list<Kernel> of)
{
    for (Kernel k : of)
        if (kernel == static_cast<int>(k)) return true;
    return false;
}

bool is_comparison(int kernel)
{
    return kernel >= static_cast<int>(Kernel::equal) &&
           kernel <= static_cast<int>(Kernel::greater_equal);
}

bool is_logical(int kernel)
{
    return is_any(kernel, {Kernel::logical_and, Kernel::logical_or, Kernel::logical_not});
}

// Whether of integers this kernel makes these or bools: not floats, and no error.
bool takes_integers(int kernel)
{
    return is_comparison(kernel) ||
           is_any(kernel, {Kernel::add, Kernel::subtract, Kernel::multiply, Kernel::maximum,
                           Kernel::minimum, Kernel::negate, Kernel::abs, Kernel::relu});
}

// One call of elementwise(): arrays[0] is the output, arrays[1], ... the inputs.
class Elementwise {
public:
    Elementwise(int kernel, PyObject* const* inputs, int count)
        : kernel_(kernel), inputs_(inputs), count_(count)
    {
    }

    // The result, or nullptr where this is not the common path.
    PyObject* run()
    {
        if (!read_inputs() || !broadcast_shape(arrays_ + 1, count_, arrays_[0])) return nullptr;
        py::object out = make_output();
        launch_kernel();
        return out.release().ptr();
    }

    // Writes the result to the first input, a whole array; false where this is not the common path.
    bool run_in_place()
    {
        if (!is_array(inputs_[0]) || !read_inputs()) return false;
        const Array& target = arrays_[1];
        bool fits = target.dtype == dtype_ && broadcast_shape(arrays_ + 1, count_, arrays_[0]) &&
                    same_shape(target, arrays_[0]) && is_compact(target);
        if (!fits || !is_independent(inputs_[1], arrays_[2], target)) return false;
        arrays_[0] = target;
        launch_kernel();
        ++target.storage->version;
        return true;
    }

private:
    void launch_kernel()
    {
        py::object cast[2];  // these must live until the call is queued
        for (int i = 0; i < count_; ++i) {
            Array& array = arrays_[i + 1];
            if (!is_array(inputs_[i])) {
                read_immediate(inputs_[i], dtype_, arrays_[0], &immediate_, array);
                continue;
            }
            if (array.dtype != dtype_) {
                cast[i] = copy_array(inputs_[i], dtype_, false);
                read_array(cast[i], array);
            }
            expand(array, arrays_[0]);
        }
        Call call{arrays_, count_ + 1, nullptr, 0, nullptr, nullptr, kernel_};
        run_kernel(kernel_, call, arrays_[0].size());
    }

    // Whether no element of `other` is written before it is read.
    static bool is_independent(PyObject* input, const Array& other, const Array& target)
    {
        if (!is_array(input)) return true;
        if (other.data == target.data && is_compact(other) && same_shape(other, target))
            return true;
        return !may_overlap(other, target);
    }

    // Reads the arrays, and finds the dtype to compute in.
    bool read_inputs()
    {
        bool found = false;
        for (int i = 0; i < count_; ++i) {
            if (!is_array(inputs_[i])) {
                arrays_[i + 1].rank = 0;
                continue;
            }
            if (part(inputs_[i], Part::device) != bound.device) return false;
            read_array(inputs_[i], arrays_[i + 1]);
            DType own = arrays_[i + 1].dtype;
            dtype_ = found ? bound.promoted[static_cast<int>(dtype_)][static_cast<int>(own)] : own;
            found = true;
        }
        if (!found) return false;
        for (int i = 0; i < count_; ++i)
            if (!is_array(inputs_[i]) && !take_number(inputs_[i])) return false;
        if (dtype_ == DType::boolean || is_logical(kernel_))
            return dtype_ == DType::boolean && is_logical(kernel_);
        if (is_float(dtype_) || takes_integers(kernel_)) return true;
        dtype_ = DType::float64;
        return kernel_ == static_cast<int>(Kernel::divide);
    }

    // Whether this is a number that can be combined with an array of this dtype; of integers, a
    // float makes float64.
    bool take_number(PyObject* input)
    {
        if (PyFloat_CheckExact(input)) {
            if (!is_float(dtype_)) dtype_ = DType::float64;
            return true;
        }
        if (is_float(dtype_))
            return PyLong_CheckExact(input) ||
                   Py_TYPE(input) == bound.scalars[static_cast<int>(dtype_)];
        return PyLong_CheckExact(input) && fits(input, dtype_);
    }

    // In the memory order of the first input of full size; row-major if there is none.
    py::object make_output()
    {
        Array& out = arrays_[0];
        py::object shape, strides;
        for (int i = 0; i < count_ && !shape; ++i)
            if (is_array(inputs_[i]) && same_shape(arrays_[i + 1], out)) {
                shape = as_object(part(inputs_[i], Part::shape));
                strides = dense_strides(inputs_[i], arrays_[i + 1]);
                read_sizes(strides.ptr(), out.strides);
            }
        if (!shape) {
            set_compact_strides(out);
            shape = sizes_tuple(out.shape, out.rank);
            strides = sizes_tuple(out.strides, out.rank);
        }
        out.dtype = is_comparison(kernel_) ? DType::boolean : dtype_;
        return allocate_array(out, shape, strides, bound.device);
    }

    int kernel_;
    PyObject* const* inputs_;
    int count_;
    DType dtype_ = DType::float32;
    Array arrays_[3];
    double immediate_ = 0;
};

// ---- reductions

// A kernel that folds the last axes of the layout `of` (shape, strides) of `a` into one of the
// layout `to`, or nullptr where `a` is not on the bound device.
PyObject* reduce(int kernel, PyObject* a, PyObject* to, PyObject* of)
{
    if (!is_local(a)) return nullptr;
    Array operands[2];
    Array& out = operands[0];
    read_parts(part(a, Part::handle), PyTuple_GET_ITEM(of, 0), PyTuple_GET_ITEM(of, 1),
               part(a, Part::offset), operands[1]);
    out.dtype = operands[1].dtype;
    PyObject *shape = PyTuple_GET_ITEM(to, 0), *strides = PyTuple_GET_ITEM(to, 1);
    out.rank = read_sizes(shape, out.shape);
    read_sizes(strides, out.strides);
    py::object result = allocate_array(out, as_object(shape), as_object(strides), bound.device);
    Call call{operands, 2, nullptr, 0, nullptr, nullptr, 0};
    run_kernel(kernel, call, operands[1].size());
    return result.release().ptr();
}

// ---- matrix products

// a @ b + bias, or nullptr where this is not the common path.
PyObject* matmul(PyObject* a, PyObject* b, PyObject* bias)
{
    Array operands[4] = {};  // the result, then these; a bias that is absent has no data
    PyObject* inputs[] = {a, b, bias};
    for (int i = 0; i < 3; ++i) {
        if (i == 2 && bias == Py_None) break;
        if (!is_local(inputs[i])) return nullptr;
        read_array(inputs[i], operands[i + 1]);
        if (operands[i + 1].rank != (i == 2 ? 1 : 2)) return nullptr;
        if (operands[i + 1].dtype != operands[1].dtype) return nullptr;
    }
    Array& out = operands[0];
    out.dtype = operands[1].dtype;
    out.rank = 2;
    out.shape[0] = operands[1].shape[0];
    out.shape[1] = operands[2].shape[1];
    int64_t depth = operands[1].shape[1];
    bool fits =
        depth == operands[2].shape[0] && (bias == Py_None || operands[3].shape[0] == out.shape[1]);
    if (!fits || !is_float(out.dtype)) return nullptr;
    set_compact_strides(out);
    py::object result =
        allocate_array(out, sizes_tuple(out.shape, 2), sizes_tuple(out.strides, 2), bound.device);
    const double no_activation_no_sum[2] = {0, 0};
    Call call{operands, 4, no_activation_no_sum, 2, nullptr, nullptr, 0};
    run_kernel(static_cast<int>(Kernel::matmul), call, out.size() * depth);
    return result.release().ptr();
}

// A list's items, kept while a kernel runs: meanwhile another thread may change the list.
py::object items_of(PyObject* list)
{
    PyObject* items = PySequence_Tuple(list);
    if (items == nullptr) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(items);
}

// ---- arrays side by side

// One call of join(): arrays one after the other along `axis`, which they get first if it is new.
class Join {
public:
    Join(PyObject* list, int64_t axis, bool is_new) : list_(list), axis_(axis), is_new_(is_new) {}

    // The result, or nullptr where this is not the common path.
    PyObject* run()
    {
        if (!read_inputs()) return nullptr;
        const py::object kept = items_of(list_);
        Array out = arrays_[0];
        out.shape[axis_] = 0;
        int64_t& length = out.shape[axis_];
        for (const Array& array : arrays_)
            if (__builtin_add_overflow(length, array.shape[axis_], &length)) return nullptr;
        set_compact_strides(out);
        py::object result = allocate_array(out, sizes_tuple(out.shape, out.rank),
                                           sizes_tuple(out.strides, out.rank), bound.device);
        for (const Array& array : arrays_) append(array, out);
        return result.release().ptr();
    }

private:
    bool read_inputs()
    {
        if (!PyList_CheckExact(list_) || PyList_GET_SIZE(list_) == 0) return false;
        arrays_.assign(static_cast<size_t>(PyList_GET_SIZE(list_)), Array{});
        for (size_t i = 0; i < arrays_.size(); ++i) {
            PyObject* object = PyList_GET_ITEM(list_, static_cast<Py_ssize_t>(i));
            if (!is_local(object)) return false;
            read_array(object, arrays_[i]);
            if (i == 0 && !find_axis(arrays_[0].rank)) return false;
            if (arrays_[i].rank != rank_) return false;
            if (is_new_) add_axis(arrays_[i]);
            if (!fits(arrays_[i])) return false;
        }
        return true;
    }

    // Takes the rank of the inputs; counts a negative axis from the end of the result's.
    bool find_axis(int rank)
    {
        rank_ = rank;
        int of_result = is_new_ ? rank + 1 : rank;
        if (axis_ < 0) axis_ += of_result;
        return axis_ >= 0 && axis_ < of_result && of_result <= max_rank;
    }

    void add_axis(Array& array) const
    {
        for (int64_t i = array.rank++; i > axis_; --i) {
            array.shape[i] = array.shape[i - 1];
            array.strides[i] = array.strides[i - 1];
        }
        array.shape[axis_] = 1;
        array.strides[axis_] = 0;
    }

    bool fits(const Array& array) const
    {
        const Array& first = arrays_[0];
        if (array.dtype != first.dtype) return false;
        for (int i = 0; i < array.rank; ++i)
            if (i != axis_ && array.shape[i] != first.shape[i]) return false;
        return true;
    }

    // Copies to the start of `rest`, which then is what follows.
    void append(const Array& array, Array& rest) const
    {
        Array operands[2] = {rest, array};
        operands[0].shape[axis_] = array.shape[axis_];
        Call call{operands, 2, nullptr, 0, nullptr, nullptr, 0};
        run_kernel(static_cast<int>(Kernel::copy), call, array.size());
        rest.data = static_cast<char*>(rest.data) +
                    array.shape[axis_] * rest.strides[axis_] * item_size(rest.dtype);
    }

    PyObject* list_;
    int64_t axis_;
    bool is_new_;
    int rank_ = 0;
    std::vector<Array> arrays_;
};

// ---- optimizer steps

// One call of update(): columns[c][i] is the c-th array of parameter i; the last column is read
// only.
class Update {
public:
    Update(int kernel, PyObject* columns, PyObject* scalars)
        : kernel_(kernel), width_(width(columns))
    {
        for (Py_ssize_t c = 0; c < width_; ++c) columns_[c] = PyTuple_GET_ITEM(columns, c);
        read_scalars(scalars);
    }

    // Whether this was the common path, and was done.
    bool run()
    {
        if (!read_arrays()) return false;
        py::object kept[max_width];
        for (Py_ssize_t c = 0; c < width_; ++c)
            if (columns_[c] != Py_None) kept[c] = items_of(columns_[c]);
        Call call{arrays_.data(), static_cast<int>(arrays_.size()),
                  scalars_,       static_cast<int>(scalar_count_),
                  nullptr,        nullptr,
                  kernel_};
        {
            py::gil_scoped_release unlocked;
            launch(Device::cpu, kernel_, call);
        }
        for (Storage* storage : written_) ++storage->version;
        return true;
    }

private:
    static constexpr Py_ssize_t max_width = 4, max_scalars = 8;

    static Py_ssize_t width(PyObject* columns)
    {
        Py_ssize_t n = PyTuple_GET_SIZE(columns);
        if (n < 1 || n > max_width) throw py::value_error("update: need 1 to 4 columns");
        return n;
    }

    void read_scalars(PyObject* scalars)
    {
        scalar_count_ = PyTuple_GET_SIZE(scalars);
        if (scalar_count_ > max_scalars) throw py::value_error("update: more than 8 scalars");
        read_numbers(scalars, kernel_names[kernel_], scalars_);
    }

    bool read_arrays()
    {
        if (!PyList_CheckExact(columns_[0]) || PyList_GET_SIZE(columns_[0]) == 0) return false;
        Py_ssize_t rows = PyList_GET_SIZE(columns_[0]);
        for (Py_ssize_t c = 1; c < width_; ++c) {
            bool absent = is_absent(c);
            if (!absent && !PyList_CheckExact(columns_[c])) return false;
            if (!absent && PyList_GET_SIZE(columns_[c]) != rows) return false;
        }
        arrays_.assign(static_cast<size_t>(rows * width_), Array{});
        for (Py_ssize_t i = 0; i < rows; ++i)
            for (Py_ssize_t c = 0; c < width_; ++c)
                if (!read_one(i, c, arrays_.data() + i * width_)) return false;
        return true;
    }

    // Whether this is the momenta of sgd and None: no other column may be absent.
    bool is_absent(Py_ssize_t column) const
    {
        return columns_[column] == Py_None && column == 1 && is_any(kernel_, {Kernel::sgd});
    }

    bool read_one(Py_ssize_t row, Py_ssize_t column, Array* out)
    {
        Array& array = out[column];
        if (is_absent(column)) {
            array.data = nullptr;
            array.rank = 0;
            return true;
        }
        PyObject* object = PyList_GET_ITEM(columns_[column], row);
        if (!is_local(object)) return false;
        read_array(object, array);
        if (!is_float(array.dtype) || array.dtype != arrays_[0].dtype || !same_shape(array, out[0]))
            return false;
        if (column + 1 < width_) written_.push_back(&storage_of(part(object, Part::handle)));
        return is_compact(array);
    }

    int kernel_;
    Py_ssize_t width_;
    PyObject* columns_[max_width];
    double scalars_[max_scalars];
    Py_ssize_t scalar_count_;
    std::vector<Array>& arrays_ = records();
    std::vector<Storage*> written_;
};

// The sum of the squares of all elements of all arrays, or None where this is not the common path.
py::object sum_squares(PyObject* list)
{
    if (!PyList_CheckExact(list) && !PyTuple_CheckExact(list)) return py::none();
    auto count = static_cast<size_t>(PySequence_Fast_GET_SIZE(list));
    std::vector<Array>& arrays = records();
    arrays.assign(count + 1, Array{});
    double sum = 0;
    arrays[0] = {&sum, DType::float64, 0, {}, {}};
    int64_t elements = 0;
    for (size_t i = 1; i <= count; ++i) {
        PyObject* object = PySequence_Fast_ITEMS(list)[i - 1];
        if (!is_local(object)) return py::none();
        read_array(object, arrays[i]);
        bool fits = is_float(arrays[i].dtype) && arrays[i].dtype == arrays[1].dtype;
        if (!fits || !is_compact(arrays[i])) return py::none();
        elements += arrays[i].size();
    }
    const py::object kept = items_of(list);
    Call call{arrays.data(), static_cast<int>(count) + 1, nullptr, 0, nullptr, nullptr, 0};
    if (elements > 0) run_kernel(static_cast<int>(Kernel::sum_squares), call, elements);
    return py::float_(sum);
}

// ---- as Python calls them

// The result, or None where it was not the common path.
PyObject* or_none(PyObject* result)
{
    return result != nullptr ? result : py::none().release().ptr();
}

PyObject* call_elementwise(PyObject*, PyObject* const* arguments, Py_ssize_t count)
{
    if (count < 2 || count > 3) {
        PyErr_SetString(PyExc_TypeError, "elementwise: need a kernel and one or two inputs");
        return nullptr;
    }
    return guarded([&]() -> PyObject* {
        int kernel = static_cast<int>(PyLong_AsLong(arguments[0]));
        PyObject* out = Elementwise(kernel, arguments + 1, static_cast<int>(count) - 1).run();
        return or_none(out);
    });
}

PyObject* call_elementwise_in_place(PyObject*, PyObject* const* arguments, Py_ssize_t count)
{
    if (count != 3) {
        PyErr_SetString(PyExc_TypeError, "elementwise_in_place: need a kernel and two inputs");
        return nullptr;
    }
    return guarded([&]() -> PyObject* {
        int kernel = static_cast<int>(PyLong_AsLong(arguments[0]));
        return py::bool_(Elementwise(kernel, arguments + 1, 2).run_in_place()).release().ptr();
    });
}

PyObject* call_fill(PyObject*, PyObject* const* arguments, Py_ssize_t count)
{
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "fill: need an array and a number");
        return nullptr;
    }
    return guarded([&] { return py::bool_(fill(arguments[0], arguments[1])).release().ptr(); });
}

PyObject* call_copy(PyObject*, PyObject* const* arguments, Py_ssize_t count)
{
    if (count != 3) {
        PyErr_SetString(PyExc_TypeError, "copy: need an array, a dtype, and whether row-major");
        return nullptr;
    }
    return guarded([&]() -> PyObject* {
        if (!is_local(arguments[0])) return or_none(nullptr);
        DType kind = dtype_of(arguments[1]);
        return copy_array(arguments[0], kind, arguments[2] == Py_True).release().ptr();
    });
}

PyObject* call_copy_into(PyObject*, PyObject* const* arguments, Py_ssize_t count)
{
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "copy_into: need two arrays");
        return nullptr;
    }
    return guarded(
        [&] { return py::bool_(copy_into(arguments[0], arguments[1])).release().ptr(); });
}

PyObject* call_reduce(PyObject*, PyObject* const* arguments, Py_ssize_t count)
{
    auto is_layout = [&](int i) {
        return PyTuple_CheckExact(arguments[i]) && PyTuple_GET_SIZE(arguments[i]) == 2 &&
               PyTuple_CheckExact(PyTuple_GET_ITEM(arguments[i], 0)) &&
               PyTuple_CheckExact(PyTuple_GET_ITEM(arguments[i], 1));
    };
    if (count != 4 || !is_layout(2) || !is_layout(3)) {
        PyErr_SetString(PyExc_TypeError, "reduce: need a kernel, an array and two layouts");
        return nullptr;
    }
    return guarded([&]() -> PyObject* {
        int kernel = static_cast<int>(PyLong_AsLong(arguments[0]));
        PyObject* out = reduce(kernel, arguments[1], arguments[2], arguments[3]);
        return or_none(out);
    });
}

PyObject* call_matmul(PyObject*, PyObject* const* arguments, Py_ssize_t count)
{
    if (count != 3) {
        PyErr_SetString(PyExc_TypeError, "matmul: need two matrices and a bias or None");
        return nullptr;
    }
    return guarded([&]() -> PyObject* {
        PyObject* out = matmul(arguments[0], arguments[1], arguments[2]);
        return or_none(out);
    });
}

PyObject* call_join(PyObject*, PyObject* const* arguments, Py_ssize_t count)
{
    if (count != 3) {
        PyErr_SetString(PyExc_TypeError, "join: need arrays, an axis, and whether it is new");
        return nullptr;
    }
    return guarded([&]() -> PyObject* {
        int too_large = 0;
        PyObject* out = nullptr;
        if (PyLong_CheckExact(arguments[1])) {
            int64_t axis = PyLong_AsLongLongAndOverflow(arguments[1], &too_large);
            if (!too_large) out = Join(arguments[0], axis, arguments[2] == Py_True).run();
        }
        return or_none(out);
    });
}

PyObject* call_outside(PyObject*, PyObject* const* arguments, Py_ssize_t count)
{
    if (count != 2 || !is_array(arguments[0])) {
        PyErr_SetString(PyExc_TypeError, "outside: need an NDArray and a count");
        return nullptr;
    }
    return guarded([&] {
        Array ids;
        read_array(arguments[0], ids);
        wait_for(*ids.storage);
        int64_t limit = PyLong_AsLongLong(arguments[1]);
        if (PyErr_Occurred() != nullptr) throw py::error_already_set();
        const int64_t* found = first_outside(ids, limit);
        return found == nullptr ? py::none().release().ptr() : PyLong_FromLongLong(*found);
    });
}

PyObject* call_update(PyObject*, PyObject* const* arguments, Py_ssize_t count)
{
    if (count != 3 || !PyTuple_CheckExact(arguments[1]) || !PyTuple_CheckExact(arguments[2])) {
        PyErr_SetString(PyExc_TypeError,
                        "update: need a kernel, a tuple of columns and of scalars");
        return nullptr;
    }
    return guarded([&] {
        int kernel = static_cast<int>(PyLong_AsLong(arguments[0]));
        return py::bool_(Update(kernel, arguments[1], arguments[2]).run()).release().ptr();
    });
}

PyObject* call_sum_squares(PyObject*, PyObject* const* arguments, Py_ssize_t count)
{
    if (count != 1) {
        PyErr_SetString(PyExc_TypeError, "sum_squares: need a list of arrays");
        return nullptr;
    }
    return guarded([&] { return sum_squares(arguments[0]).release().ptr(); });
}

}  // namespace

void add_common_paths(py::module_& m)
{
    add_function(m, "elementwise", call_elementwise,
                 "elementwise(kernel: int, a: object, b: object = ...) -> NDArray | None");
    add_function(m, "elementwise_in_place", call_elementwise_in_place,
                 "elementwise_in_place(kernel: int, target: object, other: object) -> bool");
    add_function(m, "fill", call_fill, "fill(target: object, number: object) -> bool");
    add_function(m, "copy", call_copy,
                 "copy(a: object, dtype: dtype, row_major: bool) -> NDArray | None");
    add_function(m, "copy_into", call_copy_into, "copy_into(target: object, a: object) -> bool");
    add_function(m, "reduce", call_reduce,
                 "reduce(kernel: int, a: object, to: tuple, of: tuple) -> NDArray | None");
    add_function(m, "matmul", call_matmul,
                 "matmul(a: object, b: object, bias: object) -> NDArray | None");
    add_function(m, "join", call_join,
                 "join(arrays: list, axis: int, is_new: bool) -> NDArray | None");
    add_function(m, "update", call_update,
                 "update(kernel: int, columns: tuple, scalars: tuple) -> bool");
    add_function(m, "sum_squares", call_sum_squares,
                 "sum_squares(arrays: list | tuple) -> float | None");
    add_function(m, "outside", call_outside, "outside(ids: NDArray, count: int) -> int | None");
}

}  // namespace needle
