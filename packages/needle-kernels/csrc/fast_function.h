// Functions that Python calls without pybind11's own dispatch, which costs as much as a small
// kernel.
#pragma once

#include <pybind11/pybind11.h>

#include <exception>
#include <new>

namespace needle {

// What such a function is: (module, arguments, their count) -> a new reference, or nullptr with
// Python's error set.
using FastFunction = PyObject* (*)(PyObject*, PyObject* const*, Py_ssize_t);

// Runs body() and turns C++ exceptions into Python's.
template <class Body>
PyObject* guarded(const Body& body)
{
    try {
        return body();
    } catch (pybind11::error_already_set& error) {
        error.restore();
    } catch (const pybind11::builtin_exception& error) {
        error.set_error();
    } catch (const std::bad_alloc& error) {
        PyErr_SetString(PyExc_MemoryError, error.what());
    } catch (const std::exception& error) {
        PyErr_SetString(PyExc_RuntimeError, error.what());
    }
    return nullptr;
}

// Makes it `name` in the module; the strings must live as long.
inline void add_function(pybind11::module_& m, const char* name, FastFunction function,
                         const char* signature)
{
    auto any = reinterpret_cast<void (*)()>(function);
    // The method's definition must live as long as the function.
    auto* method =
        new PyMethodDef{name, reinterpret_cast<PyCFunction>(any), METH_FASTCALL, signature};
    m.attr(name) = pybind11::reinterpret_steal<pybind11::object>(PyCFunction_New(method, nullptr));
}

}  // namespace needle
