// needle._kernels.cuda: hands the device's kernels and memory to the launch point, and copies.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "../allocator.h"
#include "../launch.h"
#include "families.h"
#include "runtime.h"

namespace py = pybind11;

namespace needle::cuda {

namespace {

CachingAllocator& allocator()
{
    static CachingAllocator* instance = new CachingAllocator(system_allocate, system_free);
    return *instance;
}

class CudaBackend : public Backend {
public:
    void* allocate(int64_t bytes) override { return allocator().take(bytes); }
    void release(void* data, int64_t bytes) override { allocator().give(data, bytes); }
    void* stream() override { return cuda::stream(); }
    std::string out_of_memory(int64_t bytes) override
    {
        MemoryStats stats = allocator().stats();
        return "cuda: out of memory: asked for " + std::to_string(bytes) +
               " bytes: " + std::to_string(stats.held) + " held, " + std::to_string(stats.in_use) +
               " of them in use, " + std::to_string(free_memory()) + " free on the device, limit " +
               (stats.limit > 0 ? std::to_string(stats.limit) : std::string("none"));
    }
};

Table make_table()
{
    Table table;
    add_elementwise(table);
    add_shape(table);
    add_reduce(table);
    add_softmax(table);
    add_index(table);
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
    m.def("synchronize", &synchronize, py::call_guard<py::gil_scoped_release>());
    m.def("memory_stats", &stats);
    m.def("reset_peak", [] { allocator().reset_peak(); });
    m.def(
        "set_memory_limit", [](int64_t bytes) { allocator().set_limit(bytes); }, py::arg("limit"));
    m.def("empty_cache", [] { allocator().empty(); });
    m.def("set_pooling", [](bool on) { allocator().set_pooling(on); }, py::arg("on"));
    m.attr("RUNTIME") = runtime_version();
    m.attr("EMULATED") = runtime_version() == 0;
}
