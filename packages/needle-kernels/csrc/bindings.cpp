// needle._kernels.cpu: what Python sees of the C++ side. It converts; it decides nothing.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <stdexcept>
#include <string>

#include "caches.h"
#include "common_path.h"
#include "fast_function.h"
#include "index_view.h"
#include "launch.h"
#include "peak.h"
#include "pyarray.h"
#include "pystorage.h"
#include "queue.h"
#include "recorder.h"
#include "target.h"
#include "threads.h"

namespace py = pybind11;

namespace needle {

namespace {

// Created once and never freed, like the functions below: they must survive the interpreter's end.
py::object numpy_dtype(DType dtype)
{
    static py::object* dtypes = new py::object[6];
    py::object& cached = dtypes[static_cast<int>(dtype)];
    if (!cached) cached = py::dtype(dtype_name(dtype));
    return cached;
}

py::dict& reference_functions()
{
    static py::dict* instance = new py::dict;
    return *instance;
}

// The operands of one launch: room for the usual few on the stack, for many parameters on the heap.
class Operands {
public:
    explicit Operands(size_t count)
    {
        if (count > inline_count) heap_ = std::make_unique<Slot[]>(count);
        slots_ = heap_ ? heap_.get() : inline_;
        arrays_heap_ = heap_ ? std::unique_ptr<Array[]>(new Array[count]) : nullptr;
        arrays_ = arrays_heap_ ? arrays_heap_.get() : inline_arrays_;
    }
    Array* arrays() { return arrays_; }
    // Where the value of the i-th operand lies when it is an immediate.
    void* immediate(size_t i) { return &slots_[i]; }

private:
    static constexpr size_t inline_count = 20;
    using Slot = int64_t;
    Slot inline_[inline_count];
    Array inline_arrays_[inline_count];
    std::unique_ptr<Slot[]> heap_;
    std::unique_ptr<Array[]> arrays_heap_;
    Slot* slots_;
    Array* arrays_;
};

bool is_number(py::handle object)
{
    return PyFloat_Check(object.ptr()) || PyLong_Check(object.ptr());
}

// Immediates take the dtype of the first array after the output, or the output's.
DType immediate_dtype(const py::tuple& operands, const Array* arrays)
{
    for (size_t i = 1; i < operands.size(); ++i)
        if (!is_number(operands[i]) && !operands[i].is_none()) return arrays[i].dtype;
    return arrays[0].dtype;
}

void read_operands(const py::tuple& operands, Operands& out)
{
    Array* arrays = out.arrays();
    bool immediates = false;
    for (size_t i = 0; i < operands.size(); ++i) {
        py::handle operand = operands[i];
        if (operand.is_none()) {
            arrays[i].data = nullptr;
            arrays[i].rank = 0;
        } else if (i > 0 && is_number(operand)) {
            immediates = true;
        } else {
            read_array(operand, arrays[i]);
        }
    }
    if (!immediates) return;
    DType dtype = immediate_dtype(operands, arrays);
    for (size_t i = 1; i < operands.size(); ++i)
        if (is_number(operands[i]))
            read_immediate(operands[i], dtype, arrays[0], out.immediate(i), arrays[i]);
}

py::array numpy_view(const Array& array, py::handle base)
{
    int64_t bytes = item_size(array.dtype);
    py::ssize_t shape[max_rank], strides[max_rank];
    for (int i = 0; i < array.rank; ++i) {
        shape[i] = array.shape[i];
        strides[i] = array.strides[i] * bytes;
    }
    return py::array(py::reinterpret_borrow<py::dtype>(numpy_dtype(array.dtype)),
                     std::vector<py::ssize_t>(shape, shape + array.rank),
                     std::vector<py::ssize_t>(strides, strides + array.rank), array.data, base);
}

// Every entry of the reference device's table: calls the NumPy twin of the kernel.
void run_reference(const Call& call)
{
    py::object function = reference_functions()[kernel_names[call.kernel]];
    py::tuple arguments(call.count + call.scalar_count);
    for (int i = 0; i < call.count; ++i)
        arguments[i] = call.arrays[i].data == nullptr
                           ? py::object(py::none())
                           : py::object(numpy_view(call.arrays[i], py::none()));
    for (int i = 0; i < call.scalar_count; ++i)
        arguments[call.count + i] = py::float_(call.scalars[i]);
    function(*arguments);
}

void set_reference(const py::dict& functions)
{
    Table& table = device_table(Device::reference);
    for (int i = 0; i < kernel_count; ++i)
        if (functions.contains(kernel_names[i])) {
            reference_functions()[kernel_names[i]] = functions[kernel_names[i]];
            table.entries[i].run = run_reference;
        }
}

void launch_from_python(int device, int kernel, const py::tuple& operands, const py::tuple& scalars)
{
    if (device < 0 || device >= device_count) throw py::index_error("launch: device: out of range");
    if (kernel < 0 || kernel >= kernel_count) throw py::index_error("launch: kernel: out of range");
    Operands read(operands.size());
    read_operands(operands, read);
    constexpr size_t max_scalars = 16;
    double values[max_scalars];
    if (scalars.size() > max_scalars) throw py::value_error("launch: scalars: more than 16");
    read_numbers(scalars.ptr(), kernel_names[kernel], values);
    Call call{read.arrays(), static_cast<int>(operands.size()),
              values,        static_cast<int>(scalars.size()),
              nullptr,       nullptr,
              kernel};
    if (static_cast<Device>(device) == Device::reference) {
        launch(Device::reference, kernel, call);
    } else {
        py::gil_scoped_release unlocked;
        launch(static_cast<Device>(device), kernel, call);
    }
}

PyObject* call_launch(PyObject*, PyObject* const* arguments, Py_ssize_t count)
{
    if (count != 4 || !PyLong_Check(arguments[0]) || !PyLong_Check(arguments[1]) ||
        !PyTuple_Check(arguments[2]) || !PyTuple_Check(arguments[3])) {
        PyErr_SetString(PyExc_TypeError,
                        "launch: need a device, a kernel, a tuple of operands and of scalars");
        return nullptr;
    }
    return guarded([&] {
        launch_from_python(static_cast<int>(PyLong_AsLong(arguments[0])),
                           static_cast<int>(PyLong_AsLong(arguments[1])),
                           py::reinterpret_borrow<py::tuple>(arguments[2]),
                           py::reinterpret_borrow<py::tuple>(arguments[3]));
        return py::none().release().ptr();
    });
}

py::array view(const py::object& storage, const py::tuple& shape, const py::tuple& strides,
               int64_t offset)
{
    const Storage& memory = storage_of(storage.ptr());
    wait_for(memory);
    Array array;
    if (shape.size() > max_rank) throw py::value_error("view: rank: more than 16");
    array.rank = static_cast<int>(shape.size());
    for (size_t i = 0; i < shape.size(); ++i) {
        array.shape[i] = py::cast<int64_t>(shape[i]);
        array.strides[i] = py::cast<int64_t>(strides[i]);
    }
    array.dtype = memory.dtype();
    array.data = static_cast<char*>(memory.data()) + offset * item_size(array.dtype);
    return numpy_view(array, storage);
}

// Takes the kernels and the memory of a device from another extension module.
void register_device(const std::string& name, const py::capsule& table, const py::capsule& backend)
{
    for (int d = 0; d < device_count; ++d)
        if (name == device_names[d]) {
            device_table(static_cast<Device>(d)) = *table.get_pointer<Table>();
            set_device_backend(static_cast<Device>(d), backend.get_pointer<Backend>());
            return;
        }
    throw py::value_error("register_device: name: got " + name + ": need cpu, reference or cuda");
}

int current_target = -1;

void use_target(int index)
{
    finish_all();
    device_table(Device::cpu) = targets()[index].make_table();
    current_target = index;
}

void set_isa(const std::string& name)
{
    int index = find_target(name.c_str());
    if (index < 0 || !targets()[index].supported()) {
        std::string known;
        for (int i = 0; i < target_count(); ++i)
            if (targets()[i].supported())
                known.append(known.empty() ? "" : ", ").append(targets()[i].name);
        throw py::value_error("set_isa: name: got " + name + ": this machine has " + known);
    }
    use_target(index);
}

py::tuple isas()
{
    py::list found;
    for (int i = 0; i < target_count(); ++i)
        if (targets()[i].supported()) found.append(targets()[i].name);
    return py::tuple(found);
}

py::dict counters()
{
    py::dict found;
    for (int d = 0; d < device_count; ++d)
        for (int k = 0; k < kernel_count; ++k)
            if (uint64_t n = call_count(static_cast<Device>(d), k))
                found[py::make_tuple(device_names[d], kernel_names[k])] = n;
    return found;
}

void set_tracing(bool on) { on ? default_recorder().start() : default_recorder().stop(); }

py::list trace()
{
    py::list found;
    for (const TraceEvent& event : default_recorder().take())
        found.append(py::make_tuple(device_names[event.device], kernel_names[event.kernel],
                                    event.start, event.duration, describe_operands(event)));
    return found;
}

py::tuple tuple_of(const int64_t* values, int count)
{
    py::tuple found(count);
    for (int i = 0; i < count; ++i) found[i] = values[i];
    return found;
}

py::tuple operands_of(const TraceEvent& event)
{
    py::tuple found(event.operands.size());
    const int64_t* extents = event.extents.data();
    for (size_t i = 0; i < event.operands.size(); ++i) {
        auto [dtype, rank] = event.operands[i];
        if (rank < 0) {
            found[i] = py::none();
            continue;
        }
        found[i] = py::make_tuple(dtype_name(dtype), tuple_of(extents, rank),
                                  tuple_of(extents + rank, rank));
        extents += 2 * rank;
    }
    return found;
}

py::list calls(Recorder& recorder)
{
    py::list found;
    for (const TraceEvent& event : recorder.take())
        found.append(py::make_tuple(device_names[event.device], kernel_names[event.kernel],
                                    event.thread, event.start, event.duration, operands_of(event),
                                    py::tuple(py::cast(event.scalars))));
    return found;
}

py::tuple peak()
{
    Peak found;
    {
        py::gil_scoped_release unlocked;
        found = measure_peak(targets()[current_target].peak_loops());
    }
    return py::make_tuple(found.flops32, found.flops64, found.bytes);
}

py::dict stats()
{
    MemoryStats s = memory_stats();
    return py::dict(py::arg("in_use") = s.in_use, py::arg("held") = s.held,
                    py::arg("peak") = s.peak, py::arg("allocations") = s.allocations,
                    py::arg("system_allocations") = s.system_allocations,
                    py::arg("limit") = s.limit);
}

}  // namespace

PYBIND11_MODULE(cpu, m)
{
    m.doc() = "needle's C++ kernels, their memory and their launch point.";

    add_storage(m);

    py::class_<Recorder>(m, "Recorder")
        .def(py::init<>())
        .def("start", &Recorder::start)
        .def("stop", &Recorder::stop)
        .def("take", &calls);
    m.def("clock", &clock_now);
    m.def("thread_number", &thread_number);
    m.def("peak", &peak);

    py::list kernels;
    for (const char* name : kernel_names) kernels.append(name);
    m.attr("KERNELS") = py::tuple(kernels);
    py::list compiled;
    for (int i = 0; i < target_count(); ++i) compiled.append(targets()[i].name);
    m.attr("TARGETS") = py::tuple(compiled);

    add_function(m, "launch", call_launch,
                 "launch(device: int, kernel: int, operands: tuple, scalars: tuple) -> None");
    m.def("bind_arrays", &bind_arrays, py::arg("type"), py::arg("device"), py::arg("dtypes"),
          py::arg("promote"), py::arg("dense_strides"));
    add_arrays(m);
    add_common_paths(m);
    add_indexing(m);
    m.def("register_device", &register_device, py::arg("name"), py::arg("table"),
          py::arg("backend"));
    m.attr("DEVICES") =
        py::tuple(py::cast(std::vector<std::string>(device_names, device_names + device_count)));
    m.def("set_reference", &set_reference, py::arg("functions"));
    m.def("view", &view, py::arg("storage"), py::arg("shape"), py::arg("strides"),
          py::arg("offset"));

    m.def("isas", &isas);
    m.def("isa", [] { return targets()[current_target].name; });
    m.def("set_isa", &set_isa, py::arg("name"));
    m.def("in_turn", [] { return caches().in_turn; });
    m.def(
        "set_in_turn",
        [](bool on) {
            finish_all();
            set_in_turn(on);
        },
        py::arg("on"));
    m.attr("MOST_THREADS") = most_threads;
    m.def("num_threads", &thread_setting);
    m.def("set_num_threads", &set_thread_setting, py::arg("n"));

    m.def("finish", [] {
        py::gil_scoped_release unlocked;
        finish_all();
    });
    m.def("waiting_calls", &waiting_calls);
    m.def("counters", &counters);
    m.def("reset_counters", &reset_call_counts);
    m.def("set_tracing", &set_tracing, py::arg("on"));
    m.def("trace", &trace);

    m.def("memory_stats", &stats);
    m.def("reset_peak", &reset_peak);
    m.def("set_memory_limit", &set_memory_limit, py::arg("limit"));
    m.def("empty_cache", &empty_cache);
    m.def("set_pooling", &set_pooling, py::arg("on"));

    int best = best_target(std::getenv("NEEDLE_ISA"));
    use_target(best < 0 ? best_target(nullptr) : best);  // unknown: extension.py refuses it
}

}  // namespace needle
