#include "pystorage.h"

#include <cstdint>
#include <memory>
#include <string>

#include "fast_function.h"
#include "launch.h"
#include "queue.h"

namespace py = pybind11;

namespace needle {

PyTypeObject* storage_type = nullptr;

namespace {

DType dtype_from_name(const std::string& name)
{
    for (int i = 0; i < 6; ++i)
        if (name == dtype_name(static_cast<DType>(i))) return static_cast<DType>(i);
    throw py::type_error("Storage: dtype: got " + name +
                         ": need float32, float64, int32, int64, uint8 or bool");
}

// The number of elements that Python asks for; throws OutOfMemory where no memory holds so many.
int64_t checked_size(PyObject* number, Device device)
{
    int overflow = 0;
    int64_t size = PyLong_AsLongLongAndOverflow(number, &overflow);
    if (PyErr_Occurred() != nullptr) throw py::error_already_set();
    if (overflow > 0 || size >= too_many_elements) throw OutOfMemory(device);
    if (overflow < 0 || size < 0) throw py::value_error("Storage: size: negative: need 0 or more");
    return size;
}

PyObject* construct(PyTypeObject*, PyObject* arguments, PyObject* named)
{
    static const char* names[] = {"size", "dtype", nullptr};
    PyObject* size = nullptr;
    const char* dtype = nullptr;
    if (!PyArg_ParseTupleAndKeywords(arguments, named, "Os:Storage", const_cast<char**>(names),
                                     &size, &dtype))
        return nullptr;
    return guarded([&] {
        return make_storage(checked_size(size, Device::cpu), dtype_from_name(dtype))
            .release()
            .ptr();
    });
}

void destroy(PyObject* self)
{
    reinterpret_cast<StorageObject*>(self)->storage.~Storage();
    PyObject_Free(self);
    Py_DECREF(storage_type);
}

// Gives the address away: whoever has it may look at any time.
PyObject* share(PyObject* self, PyObject*)
{
    return guarded([&] {
        Storage& storage = storage_of(self);
        wait_for(storage);
        storage.shared = true;
        return PyLong_FromVoidPtr(storage.data());
    });
}

int set_version(PyObject* self, PyObject* value, void*)
{
    int64_t version = value == nullptr ? -1 : PyLong_AsLongLong(value);
    if (value == nullptr) PyErr_SetString(PyExc_TypeError, "Storage: version: need an int");
    if (PyErr_Occurred() != nullptr) return -1;
    storage_of(self).version = version;
    return 0;
}

// A property that reads one number.
template <auto read>
PyObject* get(PyObject* self, void*)
{
    return PyLong_FromLongLong(read(storage_of(self)));
}

PyObject* get_dtype(PyObject* self, void*)
{
    return PyUnicode_FromString(dtype_name(storage_of(self).dtype()));
}

py::object borrow(uintptr_t address, int64_t size, const std::string& dtype, py::object owner)
{
    auto keep = std::shared_ptr<void>(new py::object(std::move(owner)), [](void* object) {
        py::gil_scoped_acquire locked;
        delete static_cast<py::object*>(object);
    });
    return make_storage(reinterpret_cast<void*>(address), size, dtype_from_name(dtype), keep);
}

// Memory of a device that is not the host's.
py::object storage_on(int device, const py::object& number, const std::string& dtype)
{
    if (device < 0 || device >= device_count)
        throw py::index_error("Storage.on: device: out of range");
    int64_t size = checked_size(number.ptr(), static_cast<Device>(device));
    Backend& backend = device_backend(static_cast<Device>(device));
    DType kind = dtype_from_name(dtype);
    int64_t bytes = size * item_size(kind);
    void* data = backend.allocate(bytes);
    if (data == nullptr) throw OutOfMemory(backend.out_of_memory(bytes));
    auto owner =
        std::shared_ptr<void>(data, [&backend, bytes](void* p) { backend.release(p, bytes); });
    return make_storage(data, size, kind, owner);
}

}  // namespace

void refuse_handle(PyObject* object)
{
    throw py::type_error("handle: got " + std::string(Py_TYPE(object)->tp_name) +
                         ": need a Storage");
}

void wait_for(const Storage& storage)
{
    py::gil_scoped_release unlocked;
    finish(storage.last_call);
}

void add_storage(py::module_& m)
{
    static PyMethodDef methods[] = {{"ptr", share, METH_NOARGS, "ptr(self) -> int"}, {}};
    static PyGetSetDef properties[] = {
        {"address",
         [](PyObject* self, void*) { return PyLong_FromVoidPtr(storage_of(self).data()); }, nullptr,
         nullptr, nullptr},
        {"size", get<[](const Storage& s) { return s.size(); }>, nullptr, nullptr, nullptr},
        {"itemsize", get<[](const Storage& s) { return item_size(s.dtype()); }>, nullptr, nullptr,
         nullptr},
        {"nbytes", get<[](const Storage& s) { return s.bytes(); }>, nullptr, nullptr, nullptr},
        {"version", get<[](const Storage& s) { return s.version; }>, set_version, nullptr, nullptr},
        {"dtype", get_dtype, nullptr, nullptr, nullptr},
        {}};
    static const char* signature =
        "Storage(size: int, dtype: str) -> Storage\n\nAligned memory for elements of one dtype.";
    PyType_Slot slots[] = {{Py_tp_doc, const_cast<char*>(signature)},
                           {Py_tp_new, reinterpret_cast<void*>(construct)},
                           {Py_tp_dealloc, reinterpret_cast<void*>(destroy)},
                           {Py_tp_methods, methods},
                           {Py_tp_getset, properties},
                           {}};
    PyType_Spec spec = {"needle._kernels.cpu.Storage", sizeof(StorageObject), 0, Py_TPFLAGS_DEFAULT,
                        slots};
    auto type = py::reinterpret_steal<py::object>(PyType_FromSpec(&spec));
    if (!type) throw py::error_already_set();
    auto add_static = [&](const char* name, const py::cpp_function& function) {
        type.attr(name) = py::staticmethod(function);
    };
    add_static("borrow", py::cpp_function(&borrow, py::name("borrow"), py::arg("ptr"),
                                          py::arg("size"), py::arg("dtype"), py::arg("owner")));
    add_static("on", py::cpp_function(&storage_on, py::name("on"), py::arg("device"),
                                      py::arg("size"), py::arg("dtype")));
    m.attr("Storage") = type;
    storage_type = reinterpret_cast<PyTypeObject*>(type.release().ptr());  // kept until the end
}

}  // namespace needle
