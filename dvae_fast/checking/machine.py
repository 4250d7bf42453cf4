"""What a verdict depends on: the library, the device, its driver, and torch."""

from __future__ import annotations

import functools
import hashlib
import platform
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dvae_fast import ops
from dvae_fast._version import __version__


class CheckError(RuntimeError):
    """The check cannot be made; one line says why."""


class Kind(NamedTuple):
    """A kind of GPU: all of one are taken to compute alike."""

    name: str
    capability: str
    #: the first device of it
    device: str


@functools.cache
def library_hash() -> str:
    """sha256 of the compiled library's file; "" without one."""
    file = getattr(sys.modules.get("dvae_fast._C"), "__file__", None)
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else ""


def cuda_kinds() -> list[Kind]:
    """The kinds of GPU this process sees, with the first device of each.

    Those that torch has no code for are left out where there are others: nothing runs on them, the
    reference neither, and often they are there for a screen.
    """
    kinds: dict[tuple[str, str], Kind] = {}
    of_torch = set()
    for index in range(torch.cuda.device_count()):
        p = torch.cuda.get_device_properties(index)
        capability = f"{p.major}.{p.minor}"
        kind = kinds.setdefault((p.name, capability), Kind(p.name, capability, f"cuda:{index}"))
        if _has_code(p.major, p.minor):
            of_torch.add(kind)
    return [kind for kind in kinds.values() if kind in of_torch or not of_torch]


def _has_code(major: int, minor: int) -> bool:
    """Whether torch has kernels for GPUs of this capability, compiled or to be compiled."""
    for name in torch.cuda.get_arch_list():
        match = re.fullmatch(r"(sm|compute)_(\d+)(\d)[a-z]?", name)
        if match is None:
            continue
        built = int(match[2]), int(match[3])
        if built <= (major, minor) and (match[1] == "compute" or built[0] == major):
            return True
    return False


def driver_version() -> str:
    """The kernel module's version, or that of the interface it offers."""
    try:
        words = Path("/proc/driver/nvidia/version").read_text().splitlines()[0].split()
        return next(w for w in words if w[0].isdigit() and "." in w)
    except (OSError, StopIteration, IndexError):
        pass
    version = getattr(torch._C, "_cuda_getDriverVersion", lambda: 0)()
    return str(version) if version else ""


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def resolve_device(device: str | torch.device | None) -> torch.device:
    """`device`, by default a GPU if there is one.

    Raises:
        CheckError: if it is no device, or not one of this machine's; in one line.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError):
        raise CheckError(f"device must be cpu, cuda or cuda:N, got {device!r}") from None
    if resolved.type == "cpu":
        return torch.device("cpu")
    if resolved.type != "cuda":
        raise CheckError(f"device must be cpu, cuda or cuda:N, got {str(device)!r}")
    if torch.version.cuda is None:
        raise CheckError(f"device must be cpu: this torch ({torch.__version__}) has no CUDA")
    try:
        torch.cuda.init()
        count = torch.cuda.device_count()
    except (RuntimeError, AssertionError) as error:
        raise CheckError(f"no GPU can be used: {first_line(error)}") from None
    index = torch.cuda.current_device() if resolved.index is None else resolved.index
    if index >= count:
        raise CheckError(f"device must be below cuda:{count}, got {str(device)!r}")
    return torch.device("cuda", index)


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def describe(device: torch.device) -> dict[str, Any]:
    """Name, capability, driver, versions and the library's hash, for the report."""
    from dvae_fast._build import build_info

    info = build_info()
    out: dict[str, Any] = {"device": str(device)}
    if device.type == "cuda":
        p = torch.cuda.get_device_properties(device)
        out |= {
            "name": p.name,
            "capability": f"{p.major}.{p.minor}",
            "driver": driver_version(),
            "cuda": torch.version.cuda,
            "kernels": ops.cuda_kernels(),
        }
    else:
        out |= {"name": _cpu_name(), "threads": torch.get_num_threads()}
        out["kernels"] = ops.library_loaded()
    return {
        **out,
        "isa": info["isa"],
        "torch": torch.__version__,
        "dvae_fast": __version__,
        "python": platform.python_version(),
        "library": library_hash(),
    }
