// The Python module `dvae_fast._C`. Importing it registers the CPU's kernels; those for CUDA are
// registered on request (register.cpp of each device). It says itself what it was built with and
// which instruction set it runs on.
#include <Python.h>

#include <exception>

#include "../cpu/products.h"

namespace {

using dvae::cpu::isa_name;

PyObject* isas(PyObject*, PyObject*) {
  const auto available = dvae::cpu::available_isas();
  PyObject* names = PyTuple_New(static_cast<Py_ssize_t>(available.size()));
  for (size_t i = 0; names != nullptr && i < available.size(); ++i) {
    PyTuple_SetItem(names, static_cast<Py_ssize_t>(i),
                    PyUnicode_FromString(isa_name(available[i])));
  }
  return names;
}

PyObject* isa(PyObject*, PyObject*) {
  try {
    return PyUnicode_FromString(isa_name(dvae::cpu::level_in_use()));
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
    return nullptr;
  }
}

PyObject* bfloat16(PyObject*, PyObject*) {
  try {
    const auto level = dvae::cpu::bf16_isa();
    if (level == dvae::cpu::Isa::kBase) Py_RETURN_NONE;
    return PyUnicode_FromString(isa_name(level));
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
    return nullptr;
  }
}

PyObject* compiler(PyObject*, PyObject*) {
#if defined(__clang__)
  return PyUnicode_FromString("Clang " __clang_version__);
#else
  return PyUnicode_FromString("GCC " __VERSION__);
#endif
}

PyMethodDef functions[] = {
    {"isas", isas, METH_NOARGS, "Instruction sets this build and CPU have, lowest first."},
    {"isa", isa, METH_NOARGS, "That in use. RuntimeError if DVAE_FAST_ISA names none of them."},
    {"bfloat16", bfloat16, METH_NOARGS,
     "That of products of bfloat16 matrices, None without; RuntimeError as isa()."},
    {"compiler", compiler, METH_NOARGS, "Name and version."},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace

PyMODINIT_FUNC PyInit__C(void) {
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT,
                                   "_C",
                                   "Compiled operators of dvae_fast.",
                                   -1,
                                   functions,
                                   nullptr,
                                   nullptr,
                                   nullptr,
                                   nullptr};
  return PyModule_Create(&definition);
}
