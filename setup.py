"""Builds the compiled operators `_C`, on torch's and Python's stable ABI: one library for all.

Of the environment:

- DVAE_FAST_PURE: 1, nothing is compiled, and the package runs on its PyTorch reference.
- DVAE_FAST_CORE: 1, `_core` is built too, the formulas over NumPy arrays for tests and notebooks
  (needs pybind11). It goes into no wheel.
- DVAE_FAST_CUDA: unset, CUDA kernels are built where torch has CUDA and there is an nvcc of the
  same major version; 0, never; 1, or the build stops.
- CUDA_HOME: the CUDA toolkit. Unset: that of the nvcc in PATH, else /usr/local/cuda.
- TORCH_CUDA_ARCH_LIST: the GPUs to build for. Unset: those that torch was built for.

Everything else is in pyproject.toml.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from setuptools import setup

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

try:
    import torch
except ImportError as error:  # what only reads the metadata, as an sdist does, needs none
    torch, NO_TORCH = None, str(error)

MINIMUM_TORCH = (2, 11)
STABLE_ABI = "0x020b000000000000"  # torch 2.11: one build serves it and all later ones
ARCHITECTURES = "TORCH_CUDA_ARCH_LIST"
USUAL_TOOLKIT = "/usr/local/cuda"

ROOT = Path(__file__).parent


def say(line: str) -> None:
    print(f"dvae_fast: {line}", file=sys.stderr)


def sources(*patterns: str) -> list[str]:
    found = sorted(p for pattern in patterns for p in ROOT.glob(pattern))
    return [str(p.relative_to(ROOT)) for p in found]


def is_on(environ: Mapping[str, str], name: str) -> bool:
    value = environ.get(name, "")
    if value not in ("", "0", "1"):
        sys.exit(f"dvae_fast: {name} must be 0 or 1, or unset, got {value!r}")
    return value == "1"


PURE_HINT = "DVAE_FAST_PURE=1 installs without compiling: the slower PyTorch reference runs"


def check_tools() -> None:
    if torch is None:
        # Whoever asked: pip or build, editable or not.
        sys.exit(
            f"dvae_fast: torch is needed to build ({NO_TORCH}), the one that it will run with: an "
            "isolated build sees none. Install torch, setuptools and ninja, then ask again without "
            "isolation (pip: --no-build-isolation, python -m build: --no-isolation). Or: "
            f"{PURE_HINT}"
        )
    if tuple(int(n) for n in torch.__version__.split(".")[:2]) < MINIMUM_TORCH:
        sys.exit(f"dvae_fast: torch >= 2.11 is needed, got {torch.__version__}")
    compiler = os.environ.get("CXX", "g++" if sys.platform != "darwin" else "clang++")
    if shutil.which(compiler.split()[0]) is None:
        sys.exit(
            f"dvae_fast: no C++ compiler ({compiler}) found. Install one (Debian or Ubuntu: "
            f"apt-get install g++), or set CXX. Or: {PURE_HINT}"
        )


# --- whether CUDA kernels are built, and with what ---------------------------------------------


class Toolkit(NamedTuple):
    """A CUDA toolkit."""

    home: str
    version: str  # as nvcc says it, 13.0
    includes: tuple[str, ...] = ()  # where its own folder lacks the runtime's headers


class MissingError(Exception):
    """What CUDA kernels cannot be built without."""


def output_of(*command: str) -> str:
    """All that a command prints; empty where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout + done.stderr


def find_nvcc(environ: Mapping[str, str]) -> str:
    home = environ.get("CUDA_HOME") or environ.get("CUDA_PATH")
    if home:
        nvcc = shutil.which("nvcc", path=f"{home}/bin")
        if nvcc is None:
            raise MissingError(f"nvcc (none in {home}/bin, where CUDA_HOME points)")
        return nvcc
    places = [environ.get("PATH", ""), f"{USUAL_TOOLKIT}/bin"]
    nvcc = shutil.which("nvcc", path=os.pathsep.join(places))
    if nvcc is None:
        raise MissingError("nvcc (install the CUDA toolkit, or set CUDA_HOME)")
    return nvcc


def find_toolkit(environ: Mapping[str, str]) -> Toolkit:
    """The toolkit of the nvcc that is found."""
    nvcc = find_nvcc(environ)
    version = re.search(r"release (\d+\.\d+)", output_of(nvcc, "--version"))
    if version is None:
        raise MissingError(f"an nvcc that runs ({nvcc} --version names no release)")
    # Where nvcc itself says it lives: the one in PATH may be a script that calls it.
    says = re.search(r"^#\$ TOP=(.+)$", output_of(nvcc, "--dryrun", "-x", "cu", os.devnull), re.M)
    home = Path(says[1] if says else "/")
    if not (home / "bin" / "nvcc").exists():
        home = Path(nvcc).parent.parent
    return Toolkit(str(home.resolve()), version[1])


def cuda_includes(toolkit: Toolkit, packages: Iterable[str]) -> tuple[str, ...]:
    """Folders to add so that the CUDA runtime's headers are found.

    Args:
        toolkit: The one to build with.
        packages: Where Python packages of the name ``nvidia`` lie, which torch brings along.
    """
    header = "cuda_runtime_api.h"
    if any(Path(p, header).is_file() for p in (f"{toolkit.home}/include", "/usr/include")):
        return ()
    major = toolkit.version.split(".")[0]
    places = sorted(Path(toolkit.home).glob("targets/*/include"))  # of conda
    places += [Path(p, n, "include") for p in packages for n in (f"cu{major}", "cuda_runtime")]
    for folder in places:
        if (folder / header).is_file():
            return (str(folder),)
    raise MissingError(
        f"{header} (in {toolkit.home}/include, or of the package nvidia-cuda-runtime)"
    )


def nvidia_packages() -> list[str]:
    found = importlib.util.find_spec("nvidia")
    return list(found.submodule_search_locations or ()) if found is not None else []


def choose_cuda(
    environ: Mapping[str, str],
    torch_version: str,
    torch_cuda: str | None,
    packages: Iterable[str],
) -> tuple[Toolkit | None, str]:
    """The toolkit to build CUDA kernels with; or None, and what is missing if they were wanted.

    Exits where they were demanded.
    """
    switch = environ.get("DVAE_FAST_CUDA", "")
    if switch not in ("", "0", "1"):
        sys.exit(f"dvae_fast: DVAE_FAST_CUDA must be 0 or 1, or unset, got {switch!r}")
    if switch == "0":
        return None, ""
    missing = []
    if torch_cuda is None:
        missing.append(f"a torch with CUDA (this is {torch_version})")
    toolkit = None
    # Who has no torch for it does not ask for nvcc either, unless they demand the kernels.
    if torch_cuda is not None or switch == "1":
        try:
            toolkit = find_toolkit(environ)
            if torch_cuda is not None:
                major = torch_cuda.split(".")[0]
                if toolkit.version.split(".")[0] != major:
                    raise MissingError(
                        f"an nvcc of CUDA {major}, which torch {torch_version} is built with "
                        f"({toolkit.home} has {toolkit.version})"
                    )
            toolkit = toolkit._replace(includes=cuda_includes(toolkit, packages))
        except MissingError as error:
            missing.append(str(error))
    if missing and switch == "1":
        sys.exit(f"dvae_fast: DVAE_FAST_CUDA=1 needs {' and '.join(missing)}")
    return (None if missing else toolkit), " and ".join(missing)


def architectures_of(flags: Iterable[str], toolkit: Toolkit) -> list[str]:
    """In TORCH_CUDA_ARCH_LIST's notation, what nvcc's -gencode flags compile for."""
    found: dict[str, str] = {}
    for flag in flags:
        kind, major, rest = re.fullmatch(r".*code=(sm|compute)_(\d+)(\d[a-z]?)", flag).groups()
        name = f"{major}.{rest}"
        found[name] = "+PTX" if kind == "compute" else found.get(name, "")
    known = re.findall(
        r"^sm_(\d+)(\d)$", output_of(f"{toolkit.home}/bin/nvcc", "--list-gpu-code"), re.M
    )
    unknown = [name for name in found if tuple(name.rstrip("af").split(".")) not in known]
    if known and unknown:
        sys.exit(
            f"dvae_fast: {ARCHITECTURES} must name GPUs that nvcc {toolkit.version} compiles for "
            f"({', '.join(map('.'.join, known))}), got {', '.join(unknown)}"
        )
    return [n + found[n] for n in sorted(found, key=lambda n: (float(n.rstrip("af")), n))]


def cuda_architectures(toolkit: Toolkit) -> list[str]:
    """What to compile for; sets TORCH_CUDA_ARCH_LIST where it is not."""
    from torch.utils import cpp_extension

    example = "as 9.0 or 8.0;9.0+PTX"
    if not os.environ.get(ARCHITECTURES):
        # As torch was built itself: ["sm_80", "sm_90a", "compute_90"]. get_arch_list() is empty
        # on a machine without a GPU.
        flags = torch._C._cuda_getArchFlags().split()
        numbers = [
            re.sub(r"(\d)([a-z]?)$", r".\1\2", f.removeprefix("sm_")) for f in flags if "sm_" in f
        ]
        if not numbers:
            sys.exit(f"dvae_fast: {ARCHITECTURES} must name the GPUs to build for, {example}")
        os.environ[ARCHITECTURES] = ";".join(numbers) + "+PTX"
    try:
        flags = cpp_extension._get_cuda_arch_flags()
    except (ValueError, IndexError):  # IndexError: native, without a GPU
        flags = []
    if not flags:
        sys.exit(
            f"dvae_fast: {ARCHITECTURES} must name the GPUs to build for, {example}, got "
            f"{os.environ[ARCHITECTURES]!r}"
        )
    return architectures_of(flags, toolkit)


# --- what is built -----------------------------------------------------------------------------


def cuda_pieces() -> list[str]:
    """Sources that compile csrc/cuda/instantiate.cu for a kernel and a likelihood each.

    Written in the build folder, for torch's BuildExtension compiles a source once.
    """
    kernels = re.findall(
        r"^template <class L>\nstruct (\w+)", (ROOT / "csrc/cuda/likelihoods.h").read_text(), re.M
    )
    listed = (ROOT / "csrc/core/params.h").read_text().split("DVAE_LIKELIHOOD_LIST", 1)[1]
    likelihoods = re.findall(r'\bX\((\w+), "', listed.split("\n\n", 1)[0])
    folder = ROOT / "build" / "pieces"
    folder.mkdir(parents=True, exist_ok=True)
    for kernel, likelihood in itertools.product(kernels, likelihoods):
        text = (
            f"#define DVAE_KERNEL {kernel}\n#define DVAE_LIKELIHOOD {likelihood}\n"
            f'#include "{ROOT / "csrc/cuda/instantiate.cu"}"\n'
        )
        piece = folder / f"{kernel}_{likelihood}.cu"
        if not piece.exists() or piece.read_text() != text:  # else its object stays good
            piece.write_text(text)
    return sources(*(f"build/pieces/{k}_{n}.cu" for k in kernels for n in likelihoods))


def extensions(toolkit: Toolkit | None, building: bool) -> list[object]:
    from torch.utils.cpp_extension import CppExtension, CUDAExtension

    # No -ffast-math: it drops NaN handling and, at link, changes how the whole process rounds
    # denormals. errno and floating-point traps are what nobody reads, and keep loops scalar.
    math = ["-fno-math-errno", "-fno-trapping-math"]
    # -g0: Python's own flags have -g, which makes the library five times as large.
    flags = ["-O3", "-g0", "-std=c++17", "-fvisibility=hidden", *math]
    files = sources("csrc/python/module.cpp", "csrc/torch/ops/*.cpp", "csrc/torch/cpu/*.cpp")
    files += sources("csrc/cpu/*.cpp")
    macros = [("TORCH_TARGET_VERSION", STABLE_ABI)]
    build, compile_args, includes = CppExtension, {"cxx": flags}, []
    if toolkit is not None:
        build = CUDAExtension
        files += sources("csrc/torch/cuda/*.cpp", "csrc/cuda/*.cu")
        files.remove("csrc/cuda/instantiate.cu")
        if building:
            files += cuda_pieces()
        includes = [*toolkit.includes]
        compile_args["nvcc"] = ["-O3", "-std=c++17", "-Xcompiler=-fvisibility=hidden"]
        architectures = " ".join(cuda_architectures(toolkit))
        if building:
            say(
                f"building GPU kernels for {architectures} with nvcc {toolkit.version}; fewer in "
                f"{ARCHITECTURES} take less time, DVAE_FAST_CUDA=0 leaves them out"
            )
        # USE_CUDA shows torch's CUDA functions in the stable headers.
        macros += [("USE_CUDA", None), ("DVAE_CUDA_ARCHES", f'"{architectures}"')]
    operators = build(
        "dvae_fast._C",
        files,
        include_dirs=includes,
        define_macros=macros,
        extra_compile_args=compile_args,
        # Names of functions within, three quarters of the file.
        extra_link_args=["-s"] if sys.platform == "linux" else [],
        py_limited_api=True,
    )
    if not is_on(os.environ, "DVAE_FAST_CORE") or "bdist_wheel" in sys.argv:
        return [operators]
    from pybind11.setup_helpers import Pybind11Extension

    core = Pybind11Extension(
        "dvae_fast._core",
        ["csrc/python/core_module.cpp", "csrc/cpu/isa.cpp"],
        cxx_std=17,
        extra_compile_args=["-O2", *math],
    )
    return [operators, core]


def main() -> object:
    commands = {"build_ext", "develop", "bdist_wheel", "install", "editable_wheel"}
    building = not commands.isdisjoint(sys.argv)
    if is_on(os.environ, "DVAE_FAST_PURE"):
        return setup()
    if building:
        check_tools()
    if torch is None:
        return setup()
    toolkit, missing = choose_cuda(
        os.environ, torch.__version__, torch.version.cuda, nvidia_packages()
    )
    if toolkit is not None:
        os.environ["CUDA_HOME"] = toolkit.home  # which torch reads when its tools are imported
    elif missing and building:
        say(f"building for the CPU alone; GPU kernels need {missing}")
    from torch.utils.cpp_extension import BuildExtension

    class Build(BuildExtension):
        def finalize_options(self) -> None:
            # An editable install's objects too, else made anew each time in a folder of a moment.
            self.build_temp = self.build_temp or "build/temp"
            super().finalize_options()

    return setup(
        ext_modules=extensions(toolkit, building),
        cmdclass={"build_ext": Build},
        options={"bdist_wheel": {"py_limited_api": "cp310"}},
    )


if __name__ == "__main__":
    main()
