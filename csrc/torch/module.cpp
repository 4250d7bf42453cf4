// The Python module `dvae_fast._C`: empty. Importing it registers the CPU's kernels; those for CUDA
// are registered on request (register.cpp of each device).
#include <Python.h>

PyMODINIT_FUNC PyInit__C(void) {
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT,
                                   "_C",
                                   "Compiled operators of dvae_fast.",
                                   -1,
                                   nullptr,
                                   nullptr,
                                   nullptr,
                                   nullptr,
                                   nullptr};
  return PyModule_Create(&definition);
}
