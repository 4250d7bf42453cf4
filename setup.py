"""Builds the compiled parts: the operators `_C` (torch's stable ABI) and `_core` (torch-free).

DVAE_FAST_CUDA=1 builds the CUDA kernels too. They compile, and pass their tests in an emulator, but
have not run on a GPU yet, so unset means 0 until they have. TORCH_CUDA_ARCH_LIST names the
architectures; unset, they are torch's own. Everything else is in pyproject.toml.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

from setuptools import setup

BUILD = "python -m pip install --no-build-isolation -e ."

try:
    import torch
    from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension
except ImportError as error:
    sys.exit(
        f"dvae_fast: torch is needed to build ({error}). Install it first, then build without "
        f"isolation, so that the build uses it: {BUILD}"
    )

MINIMUM_TORCH = (2, 11)
STABLE_ABI = "0x020b000000000000"  # torch 2.11: one build serves it and all later ones

ROOT = Path(__file__).parent


def torch_version() -> tuple[int, int]:
    major, minor = torch.__version__.split(".")[:2]
    return int(major), int(minor)


def sources(*patterns: str) -> list[str]:
    found = sorted(p for pattern in patterns for p in ROOT.glob(pattern))
    return [str(p.relative_to(ROOT)) for p in found]


def cuda_wanted() -> bool:
    """Whether to build CUDA kernels; exits where they are demanded and cannot be had."""
    switch = os.environ.get("DVAE_FAST_CUDA", "")
    if switch not in ("", "0", "1"):
        sys.exit(f"dvae_fast: DVAE_FAST_CUDA must be 0 or 1, got {switch!r}")
    nvcc = CUDA_HOME is not None and shutil.which("nvcc", path=f"{CUDA_HOME}/bin")
    if switch != "1":
        if switch == "" and torch.version.cuda is not None:
            print(
                f"dvae_fast: this torch has CUDA {torch.version.cuda}; building for the CPU alone. "
                f"DVAE_FAST_CUDA=1 builds GPU kernels{'' if nvcc else ', but needs nvcc'}",
                file=sys.stderr,
            )
        return False
    missing = []
    if torch.version.cuda is None:
        missing.append(f"a torch with CUDA (this is {torch.__version__})")
    if not nvcc:
        missing.append("nvcc (install the CUDA toolkit, or set CUDA_HOME)")
    if missing:
        sys.exit(f"dvae_fast: DVAE_FAST_CUDA=1 needs {' and '.join(missing)}")
    return True


def cuda_architectures() -> list[str]:
    """What to compile for, in TORCH_CUDA_ARCH_LIST's notation, which is set where it is not."""
    name = "TORCH_CUDA_ARCH_LIST"
    if not os.environ.get(name):
        # As torch was built itself: ["sm_80", "sm_90a", "compute_90"]. get_arch_list() is empty
        # on a machine without a GPU.
        flags = torch._C._cuda_getArchFlags().split()
        numbers = [
            re.sub(r"(\d)([a-z]?)$", r".\1\2", f.removeprefix("sm_")) for f in flags if "sm_" in f
        ]
        if not numbers:
            sys.exit(f"dvae_fast: {name} must name the GPUs to build for, as 9.0 or 8.0;9.0+PTX")
        os.environ[name] = ";".join(numbers) + "+PTX"
    return re.split(r"[;\s]+", os.environ[name].strip())


def check_tools() -> None:
    if torch_version() < MINIMUM_TORCH:
        sys.exit(f"dvae_fast: torch >= 2.11 is needed, got {torch.__version__}")
    compiler = os.environ.get("CXX", "g++" if sys.platform != "darwin" else "clang++")
    if shutil.which(compiler.split()[0]) is None:
        sys.exit(
            f"dvae_fast: no C++ compiler ({compiler}) found. Install one (Debian or Ubuntu: "
            "apt-get install g++), or set CXX"
        )


def extensions() -> list[object]:
    from pybind11.setup_helpers import Pybind11Extension

    # No -ffast-math: it drops NaN handling and, at link, changes how the whole process rounds
    # denormals. errno and floating-point traps are what nobody reads, and keep loops scalar.
    math = ["-fno-math-errno", "-fno-trapping-math"]
    flags = ["-O3", "-std=c++17", "-fvisibility=hidden", *math]
    files = sources("csrc/torch/*.cpp", "csrc/torch/cpu/*.cpp", "csrc/cpu/*.cpp")
    macros = [("TORCH_TARGET_VERSION", STABLE_ABI)]
    core_macros = []
    build, compile_args = CppExtension, {"cxx": flags}
    if cuda_wanted():
        build = CUDAExtension
        files += sources("csrc/torch/cuda/*.cpp", "csrc/cuda/*.cu")
        macros += [("USE_CUDA", None)]  # shows torch's CUDA functions in the stable headers
        compile_args["nvcc"] = ["-O3", "-std=c++17", "-Xcompiler=-fvisibility=hidden"]
        core_macros = [("DVAE_CUDA_ARCHES", '"' + " ".join(cuda_architectures()) + '"')]
        macros += core_macros
    operators = build(
        "dvae_fast._C",
        files,
        define_macros=macros,
        extra_compile_args=compile_args,
        py_limited_api=True,
    )
    core = Pybind11Extension(
        "dvae_fast._core",
        [*sources("csrc/python/*.cpp"), "csrc/cpu/isa.cpp"],
        cxx_std=17,
        define_macros=core_macros,
        extra_compile_args=["-O2", *math],
    )
    return [operators, core]


if {"build_ext", "develop", "bdist_wheel", "install", "editable_wheel"} & set(sys.argv):
    check_tools()

setup(
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildExtension},
)
