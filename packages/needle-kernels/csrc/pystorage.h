// Storage as a Python object: an NDArray's _handle.
//
// A plain extension type: every operation makes one, and a class of pybind11's would take as long
// to make, look up and free as a small kernel to run.
#pragma once

#include <pybind11/pybind11.h>

#include <new>
#include <utility>

#include "storage.h"

namespace needle {

struct StorageObject {
    PyObject base;
    Storage storage;
};
extern PyTypeObject* storage_type;

// Throws TypeError.
[[noreturn]] void refuse_handle(PyObject* object);

inline Storage& storage_of(PyObject* object)
{
    if (Py_TYPE(object) != storage_type) refuse_handle(object);
    return reinterpret_cast<StorageObject*>(object)->storage;
}

// A new object that holds Storage(arguments...).
template <class... Arguments>
pybind11::object make_storage(Arguments&&... arguments)
{
    auto* made = PyObject_New(StorageObject, storage_type);
    if (made == nullptr) throw pybind11::error_already_set();
    try {
        new (&made->storage) Storage(std::forward<Arguments>(arguments)...);
    } catch (...) {
        PyObject_Free(made);
        Py_DECREF(storage_type);
        throw;
    }
    return pybind11::reinterpret_steal<pybind11::object>(reinterpret_cast<PyObject*>(made));
}

// Before the host looks at memory.
void wait_for(const Storage& storage);

// The class Storage; cpu.pyi says what it offers.
void add_storage(pybind11::module_& m);

}  // namespace needle
