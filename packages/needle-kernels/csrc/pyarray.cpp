#include "pyarray.h"

#include <structmember.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "launch.h"
#include "queue.h"
#include "storage.h"

namespace py = pybind11;

namespace needle {

namespace {

// The parts of an NDArray, in the order of wrap()'s arguments.
enum Part { handle, shape, strides, offset, dtype, device, part_count };
constexpr const char* part_names[] = {"_handle", "_shape", "_strides",
                                      "_offset", "_dtype", "_device"};

// What bind_arrays() was given. Its references are kept until the process ends.
struct Bound {
    PyTypeObject* type;
    Py_ssize_t place[part_count];
    PyObject* device;
    PyObject* dtypes[6];
    PyTypeObject* scalars[6];  // numpy's scalar type of each dtype
    PyObject* dense_strides;
    PyObject* zero;
};
Bound bound{};

constexpr int64_t unlocked_size = 8192;  // elements from which a kernel runs without the GIL

bool is_array(PyObject* object) { return Py_TYPE(object) == bound.type; }

PyObject*& part(PyObject* array, Part which)
{
    return *reinterpret_cast<PyObject**>(reinterpret_cast<char*>(array) + bound.place[which]);
}

DType dtype_of(PyObject* kind)
{
    for (int i = 0; i < 6; ++i)
        if (bound.dtypes[i] == kind) return static_cast<DType>(i);
    throw py::type_error("dtype: need one of needle's own six");
}

py::object borrow(PyObject* object) { return py::reinterpret_borrow<py::object>(object); }

py::object new_array(py::object memory, py::object sizes, py::object steps, py::object start,
                     py::object kind, py::object where)
{
    PyObject* array = bound.type->tp_alloc(bound.type, 0);
    if (array == nullptr) throw py::error_already_set();
    part(array, handle) = memory.release().ptr();
    part(array, shape) = sizes.release().ptr();
    part(array, strides) = steps.release().ptr();
    part(array, offset) = start.release().ptr();
    part(array, dtype) = kind.release().ptr();
    part(array, device) = where.release().ptr();
    return py::reinterpret_steal<py::object>(array);
}

int read_sizes(PyObject* tuple, int64_t* out)
{
    Py_ssize_t n = PyTuple_GET_SIZE(tuple);
    if (n > max_rank)
        throw py::value_error("launch: rank: got " + std::to_string(n) + ": at most 16");
    for (Py_ssize_t i = 0; i < n; ++i) out[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(tuple, i));
    return static_cast<int>(n);
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
    Storage& storage = py::cast<Storage&>(py::handle(handle));
    array.rank = read_sizes(shape, array.shape);
    read_sizes(strides, array.strides);
    array.storage = &storage;
    array.dtype = storage.dtype();
    array.data =
        static_cast<char*>(storage.data()) + PyLong_AsLongLong(offset) * item_size(array.dtype);
}

// ---- broadcasting

// The shape that `count` arrays broadcast to, or false where they do not.
bool broadcast_shape(const Array* arrays, int count, Array& out)
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

bool same_shape(const Array& a, const Array& b)
{
    if (a.rank != b.rank) return false;
    for (int axis = 0; axis < a.rank; ++axis)
        if (a.shape[axis] != b.shape[axis]) return false;
    return true;
}

// Shows `array` in the shape of `out`, with stride 0 along repeated axes.
void expand(Array& array, const Array& out)
{
    int added = out.rank - array.rank;
    for (int axis = out.rank - 1; axis >= 0; --axis) {
        bool repeats = axis < added || array.shape[axis - added] != out.shape[axis];
        array.strides[axis] = repeats ? 0 : array.strides[axis - added];
        array.shape[axis] = out.shape[axis];
    }
    array.rank = out.rank;
}

void set_compact_strides(Array& array)
{
    int64_t step = 1;
    for (int axis = array.rank - 1; axis >= 0; --axis) {
        array.strides[axis] = step;
        if (array.shape[axis] > 1) step *= array.shape[axis];
    }
}

bool is_compact(const Array& array)
{
    int64_t step = 1;
    for (int axis = array.rank - 1; axis >= 0; --axis) {
        if (array.strides[axis] != step) return false;
        if (array.shape[axis] > 1) step *= array.shape[axis];
    }
    return true;
}

// Runs a kernel of the CPU; without the GIL where it works on many elements.
void run_kernel(int kernel, Call& call, int64_t elements)
{
    if (elements < unlocked_size) return launch(Device::cpu, kernel, call);
    py::gil_scoped_release unlocked;
    launch(Device::cpu, kernel, call);
}

// ---- new arrays

// The number of elements; std::bad_alloc where there are more than any memory holds.
int64_t checked_size(const Array& array)
{
    int64_t size = 1;
    bool fits = true;
    for (int axis = 0; axis < array.rank; ++axis) {
        if (array.shape[axis] == 0) return 0;
        fits &= !__builtin_mul_overflow(size, array.shape[axis], &size);
    }
    if (!fits || size > INT64_MAX / 8) throw std::bad_alloc();
    return size;
}

// An NDArray with memory of its own for the layout in `out`, whose `data` is set to it. `sizes` and
// `steps` are that layout's tuples.
py::object allocate_array(Array& out, py::object sizes, py::object steps, PyObject* device)
{
    auto storage = std::make_unique<Storage>(checked_size(out), out.dtype);
    out.storage = storage.get();
    out.data = storage->data();
    py::object memory = py::cast(std::move(storage));
    return new_array(memory, std::move(sizes), std::move(steps), borrow(bound.zero),
                     borrow(bound.dtypes[static_cast<int>(out.dtype)]), borrow(device));
}

py::object empty(PyObject* shape, PyObject* kind, PyObject* device)
{
    Array out;
    out.dtype = dtype_of(kind);
    out.rank = read_sizes(shape, out.shape);
    if (PyErr_Occurred() != nullptr) throw py::error_already_set();
    set_compact_strides(out);
    return allocate_array(out, borrow(shape), sizes_tuple(out.strides, out.rank), device);
}

// The strides of a new array of this shape and memory order; `like` is what both are read from.
py::object dense_steps(PyObject* model, const Array& like)
{
    py::object steps = borrow(part(model, strides));
    if (is_compact(like)) return steps;
    return py::handle(bound.dense_strides)(borrow(part(model, shape)), steps);
}

py::object empty_like(PyObject* model, PyObject* kind)
{
    Array out;
    read_array(model, out);
    out.dtype = dtype_of(kind);
    py::object steps = dense_steps(model, out);
    return allocate_array(out, borrow(part(model, shape)), steps, part(model, device));
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

bool is_float(DType dtype) { return dtype == DType::float32 || dtype == DType::float64; }

// ---- element by element

bool is_comparison(int kernel)
{
    return kernel >= static_cast<int>(Kernel::equal) &&
           kernel <= static_cast<int>(Kernel::greater_equal);
}

bool is_logical(int kernel)
{
    return kernel == static_cast<int>(Kernel::logical_and) ||
           kernel == static_cast<int>(Kernel::logical_or) ||
           kernel == static_cast<int>(Kernel::logical_not);
}

// Whether two integers give what this kernel makes of them: not a float, and no error.
bool takes_integers(int kernel)
{
    for (Kernel k :
         {Kernel::add, Kernel::subtract, Kernel::multiply, Kernel::maximum, Kernel::minimum})
        if (kernel == static_cast<int>(k)) return true;
    return is_comparison(kernel);
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
        bool fits = broadcast_shape(arrays_ + 1, count_, arrays_[0]) &&
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
        for (int i = 0; i < count_; ++i)
            if (is_array(inputs_[i]))
                expand(arrays_[i + 1], arrays_[0]);
            else
                read_immediate(inputs_[i], dtype_, arrays_[0], &immediate_, arrays_[i + 1]);
        Call call{arrays_, count_ + 1, nullptr, 0, nullptr, nullptr, kernel_};
        run_kernel(kernel_, call, arrays_[0].size());
    }

    // Whether no element of `other` is written before it is read.
    static bool is_independent(PyObject* input, const Array& other, const Array& target)
    {
        if (!is_array(input)) return true;
        if (other.data == target.data) return is_compact(other) && same_shape(other, target);
        auto begin = [](const Array& array) { return static_cast<char*>(array.storage->data()); };
        auto bytes = [](const Array& array) {
            return array.storage->size() * item_size(array.storage->dtype());
        };
        return begin(other) + bytes(other) <= begin(target) ||
               begin(target) + bytes(target) <= begin(other);
    }

    bool read_inputs()
    {
        PyObject* first = is_array(inputs_[0]) ? inputs_[0] : inputs_[count_ - 1];
        if (!is_array(first)) return false;
        PyObject* kind = part(first, dtype);
        dtype_ = dtype_of(kind);
        bool logical = is_logical(kernel_), floats = is_float(dtype_);
        if (dtype_ == DType::boolean ? !logical : logical || !(floats || takes_integers(kernel_)))
            return false;
        for (int i = 0; i < count_; ++i) {
            PyObject* input = inputs_[i];
            if (is_array(input)) {
                if (part(input, dtype) != kind || part(input, device) != bound.device) return false;
                read_array(input, arrays_[i + 1]);
            } else if (floats && is_number(input)) {
                arrays_[i + 1].rank = 0;
            } else {
                return false;
            }
        }
        return true;
    }

    // Whether this is a number that leaves the result the arrays' dtype.
    bool is_number(PyObject* input) const
    {
        return PyFloat_CheckExact(input) || PyLong_CheckExact(input) ||
               Py_TYPE(input) == bound.scalars[static_cast<int>(dtype_)];
    }

    // In the memory order of the first input of full size; row-major if there is none.
    py::object make_output()
    {
        Array& out = arrays_[0];
        py::object sizes, steps;
        for (int i = 0; i < count_ && !sizes; ++i)
            if (is_array(inputs_[i]) && same_shape(arrays_[i + 1], out)) {
                sizes = borrow(part(inputs_[i], shape));
                steps = dense_steps(inputs_[i], arrays_[i + 1]);
                read_sizes(steps.ptr(), out.strides);
            }
        if (!sizes) {
            set_compact_strides(out);
            sizes = sizes_tuple(out.shape, out.rank);
            steps = sizes_tuple(out.strides, out.rank);
        }
        out.dtype = is_comparison(kernel_) ? DType::boolean : dtype_;
        return allocate_array(out, sizes, steps, bound.device);
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
    if (!is_array(a) || part(a, device) != bound.device) return nullptr;
    Array operands[2];
    Array& out = operands[0];
    read_parts(part(a, handle), PyTuple_GET_ITEM(of, 0), PyTuple_GET_ITEM(of, 1), part(a, offset),
               operands[1]);
    out.dtype = operands[1].dtype;
    PyObject *sizes = PyTuple_GET_ITEM(to, 0), *steps = PyTuple_GET_ITEM(to, 1);
    out.rank = read_sizes(sizes, out.shape);
    read_sizes(steps, out.strides);
    py::object result = allocate_array(out, borrow(sizes), borrow(steps), bound.device);
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
        if (!is_array(inputs[i]) || part(inputs[i], device) != bound.device) return nullptr;
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

// ---- arrays side by side

// One call of join(): arrays one after the other along `axis`, which they get first if it is new.
class Join {
public:
    Join(PyObject* list, int64_t axis, bool is_new) : list_(list), axis_(axis), is_new_(is_new) {}

    // The result, or nullptr where this is not the common path.
    PyObject* run()
    {
        if (!read_inputs()) return nullptr;
        Array out = arrays_[0];
        out.shape[axis_] = 0;
        for (const Array& array : arrays_) out.shape[axis_] += array.shape[axis_];
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
        arrays_.resize(static_cast<size_t>(PyList_GET_SIZE(list_)));
        for (size_t i = 0; i < arrays_.size(); ++i) {
            PyObject* object = PyList_GET_ITEM(list_, static_cast<Py_ssize_t>(i));
            if (!is_array(object) || part(object, device) != bound.device) return false;
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
        for (Py_ssize_t i = 0; i < scalar_count_; ++i)
            scalars_[i] = PyFloat_AsDouble(PyTuple_GET_ITEM(scalars, i));
        if (PyErr_Occurred() != nullptr) throw py::error_already_set();
    }

    bool read_arrays()
    {
        if (!PyList_CheckExact(columns_[0]) || PyList_GET_SIZE(columns_[0]) == 0) return false;
        Py_ssize_t rows = PyList_GET_SIZE(columns_[0]);
        for (Py_ssize_t c = 1; c < width_; ++c) {
            bool absent = columns_[c] == Py_None;
            if (!absent && !PyList_CheckExact(columns_[c])) return false;
            if (!absent && PyList_GET_SIZE(columns_[c]) != rows) return false;
        }
        arrays_.resize(static_cast<size_t>(rows * width_));
        for (Py_ssize_t i = 0; i < rows; ++i)
            for (Py_ssize_t c = 0; c < width_; ++c)
                if (!read_one(i, c, arrays_.data() + i * width_)) return false;
        return true;
    }

    bool read_one(Py_ssize_t row, Py_ssize_t column, Array* out)
    {
        Array& array = out[column];
        if (columns_[column] == Py_None) {
            array.data = nullptr;
            array.rank = 0;
            return true;
        }
        PyObject* object = PyList_GET_ITEM(columns_[column], row);
        if (!is_array(object) || part(object, device) != bound.device) return false;
        read_array(object, array);
        if (!is_float(array.dtype) || array.dtype != arrays_[0].dtype || !same_shape(array, out[0]))
            return false;
        if (column + 1 < width_)
            written_.push_back(&py::cast<Storage&>(py::handle(part(object, handle))));
        return is_compact(array);
    }

    int kernel_;
    Py_ssize_t width_;
    PyObject* columns_[max_width];
    double scalars_[max_scalars];
    Py_ssize_t scalar_count_;
    std::vector<Array> arrays_;
    std::vector<Storage*> written_;
};

// The sum of the squares of all elements of all arrays, or None where this is not the common path.
py::object sum_squares(PyObject* list)
{
    if (!PyList_CheckExact(list) && !PyTuple_CheckExact(list)) return py::none();
    auto count = static_cast<size_t>(PySequence_Fast_GET_SIZE(list));
    std::vector<Array> arrays(count + 1);
    double sum = 0;
    arrays[0] = {&sum, DType::float64, 0, {}, {}};
    int64_t elements = 0;
    for (size_t i = 1; i <= count; ++i) {
        PyObject* object = PySequence_Fast_ITEMS(list)[i - 1];
        if (!is_array(object) || part(object, device) != bound.device) return py::none();
        read_array(object, arrays[i]);
        bool fits = is_float(arrays[i].dtype) && arrays[i].dtype == arrays[1].dtype;
        if (!fits || !is_compact(arrays[i])) return py::none();
        elements += arrays[i].size();
    }
    Call call{arrays.data(), static_cast<int>(count) + 1, nullptr, 0, nullptr, nullptr, 0};
    if (elements > 0) run_kernel(static_cast<int>(Kernel::sum_squares), call, elements);
    return py::float_(sum);
}

// ---- functions that Python calls without pybind11's own dispatch, which costs as much as a small
// kernel

// Runs body() and turns C++ exceptions into Python's.
template <class Body>
PyObject* guarded(const Body& body)
{
    try {
        return body();
    } catch (py::error_already_set& error) {
        error.restore();
    } catch (const std::bad_alloc&) {
        PyErr_NoMemory();
    } catch (const std::exception& error) {
        PyErr_SetString(PyExc_ValueError, error.what());
    }
    return nullptr;
}

PyObject* call_wrap(PyObject*, PyObject* const* parts, Py_ssize_t count)
{
    if (count != part_count) {
        PyErr_SetString(PyExc_TypeError,
                        "wrap: need handle, shape, strides, offset, dtype, device");
        return nullptr;
    }
    return guarded([&] {
        return new_array(borrow(parts[0]), borrow(parts[1]), borrow(parts[2]), borrow(parts[3]),
                         borrow(parts[4]), borrow(parts[5]))
            .release()
            .ptr();
    });
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
        return out != nullptr ? out : py::none().release().ptr();
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
        return out != nullptr ? out : py::none().release().ptr();
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
        return out != nullptr ? out : py::none().release().ptr();
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
        return out != nullptr ? out : py::none().release().ptr();
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

PyObject* call_outside(PyObject*, PyObject* const* arguments, Py_ssize_t count)
{
    if (count != 2 || !is_array(arguments[0])) {
        PyErr_SetString(PyExc_TypeError, "outside: need an NDArray and a count");
        return nullptr;
    }
    return guarded([&] {
        Array ids;
        read_array(arguments[0], ids);
        finish(ids.storage->last_call);
        const int64_t* found = first_outside(ids, PyLong_AsLongLong(arguments[1]));
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

template <class Function>
py::object fast_function(const char* name, Function function, const char* signature)
{
    auto any = reinterpret_cast<void (*)()>(function);
    // The method's definition must live as long as the function.
    auto* method =
        new PyMethodDef{name, reinterpret_cast<PyCFunction>(any), METH_FASTCALL, signature};
    return py::reinterpret_steal<py::object>(PyCFunction_New(method, nullptr));
}

}  // namespace

void bind_arrays(const py::type& type, const py::object& device, const py::tuple& dtypes,
                 const py::object& dense_strides)
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
    read_parts(parts[handle], parts[shape], parts[strides], parts[offset], array);
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

py::object wrap_function()
{
    return fast_function("wrap", call_wrap,
                         "wrap(handle: Storage, shape: tuple, strides: tuple, offset: int, "
                         "dtype: dtype, device: Device) -> NDArray");
}

py::object empty_function()
{
    return fast_function("empty", call_empty,
                         "empty(shape: tuple, dtype: dtype, device: Device) -> NDArray");
}

py::object empty_like_function()
{
    return fast_function("empty_like", call_empty_like,
                         "empty_like(model: NDArray, dtype: dtype) -> NDArray");
}

py::object outside_function()
{
    return fast_function("outside", call_outside,
                         "outside(ids: NDArray, count: int) -> int | None");
}

py::object update_function()
{
    return fast_function("update", call_update,
                         "update(kernel: int, columns: tuple, scalars: tuple) -> bool");
}

py::object sum_squares_function()
{
    return fast_function("sum_squares", call_sum_squares,
                         "sum_squares(arrays: list | tuple) -> float | None");
}

py::object reduce_function()
{
    return fast_function("reduce", call_reduce,
                         "reduce(kernel: int, a: object, to: tuple, of: tuple) -> NDArray | None");
}

py::object matmul_function()
{
    return fast_function("matmul", call_matmul,
                         "matmul(a: object, b: object, bias: object) -> NDArray | None");
}

py::object join_function()
{
    return fast_function("join", call_join,
                         "join(arrays: list, axis: int, is_new: bool) -> NDArray | None");
}

py::object elementwise_function()
{
    return fast_function("elementwise", call_elementwise,
                         "elementwise(kernel: int, a: object, b: object = ...) -> NDArray | None");
}

py::object elementwise_in_place_function()
{
    return fast_function(
        "elementwise_in_place", call_elementwise_in_place,
        "elementwise_in_place(kernel: int, target: object, other: object) -> bool");
}

}  // namespace needle
