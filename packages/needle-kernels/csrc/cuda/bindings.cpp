// needle._kernels.cuda: hands the device's kernels and memory to the launch point, and copies.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "families.h"
#include "graph.h"
#include "memory.h"
#include "runtime.h"

namespace py = pybind11;

namespace needle::cuda {

namespace {

Table make_table()
{
    Table table;
    add_elementwise(table);
    add_shape(table);
    add_reduce(table);
    add_softmax(table);
    add_index(table);
    add_images(table);
    add_optimize(table);
    add_normalize(table);
    add_matmul(table);
    add_recurrent(table);
    add_conv(table);
    add_pool(table);
    return table;
}

py::dict describe()
{
    const Properties& p = properties();
    return py::dict(
        py::arg("name") = p.name,
        py::arg("compute_capability") = py::make_tuple(p.compute_major, p.compute_minor),
        py::arg("multiprocessors") = p.multiprocessors, py::arg("memory") = p.memory,
        py::arg("driver") = p.driver);
}

py::dict stats()
{
    MemoryStats s = allocator().stats();
    return py::dict(py::arg("in_use") = s.in_use, py::arg("held") = s.held,
                    py::arg("peak") = s.peak, py::arg("allocations") = s.allocations,
                    py::arg("system_allocations") = s.system_allocations,
                    py::arg("limit") = s.limit, py::arg("free") = free_memory());
}

// Both copy `array`, which lies without gaps in host memory, to or from `address` on the device.
void upload(uintptr_t address, const py::buffer& array)
{
    py::buffer_info info = array.request();
    void* target = reinterpret_cast<void*>(address);
    int64_t bytes = info.size * info.itemsize;
    py::gil_scoped_release unlocked;
    copy_to_device(target, info.ptr, bytes);
}

void download(const py::buffer& array, uintptr_t address)
{
    py::buffer_info info = array.request(true);
    const void* source = reinterpret_cast<const void*>(address);
    int64_t bytes = info.size * info.itemsize;
    py::gil_scoped_release unlocked;
    copy_to_host(info.ptr, source, bytes);
}

}  // namespace

}  // namespace needle::cuda

PYBIND11_MODULE(cuda, m)
{
    using namespace needle::cuda;
    m.doc() = "needle's CUDA kernels and the memory of the device.";
    static needle::Table table = make_table();
    static CudaBackend* backend = new CudaBackend;  // arrays may outlive the module
    m.def("table", [] { return py::capsule(&table); });
    m.def("backend", [] { return py::capsule(static_cast<needle::Backend*>(backend)); });
    m.def("initialize", &initialize);
    m.def("properties", &describe);
    m.def("upload", &upload, py::arg("address"), py::arg("array"));
    m.def("download", &download, py::arg("array"), py::arg("address"));
    m.def("set_tf32", &set_tf32, py::arg("on"));
    m.def("synchronize", &synchronize, py::call_guard<py::gil_scoped_release>());
    m.def("memory_stats", &stats);
    m.def("reset_peak", [] { allocator().reset_peak(); });
    m.def(
        "set_memory_limit", [](int64_t bytes) { allocator().set_limit(bytes); }, py::arg("limit"));
    m.def("empty_cache", [] {
        check_not_capturing("emptying the cache");
        allocator().empty();
    });
    m.def("set_pooling", [](bool on) { allocator().set_pooling(on); }, py::arg("on"));
    py::class_<Graph>(m, "Graph")
        .def(py::init<>())
        .def("begin", &Graph::begin)
        .def("end", &Graph::end)
        .def("cancel", &Graph::cancel)
        .def("replay", &Graph::replay, py::call_guard<py::gil_scoped_release>())
        .def("owns", &Graph::owns, py::arg("address"))
        .def_readwrite("live", &Graph::live)
        .def_property_readonly("slots", &Graph::slots)
        .def("set_scalars", &Graph::set_scalars, py::arg("slot"), py::arg("values"));
    m.attr("RUNTIME") = runtime_version();
    m.attr("EMULATED") = runtime_version() == 0;
}
