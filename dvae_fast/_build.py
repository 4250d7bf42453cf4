"""What this installation is made of, and what is missing from it."""

from __future__ import annotations

import importlib
import platform
from typing import Any

import torch

from dvae_fast import ops
from dvae_fast._version import __version__

__all__ = ["build_info"]


def build_info() -> dict[str, Any]:
    """Versions, backends and the instruction set in use.

    Returns:
        A dict of ``dvae_fast``, ``torch``, ``python`` (versions), ``compiled`` (whether the fused
        kernels run), ``isa`` (the CPU level in use, None without kernels or with a wrong
        ``DVAE_FAST_ISA``), ``isas`` (levels this build and CPU have), ``bfloat16`` (the level
        whose instructions a decoder's bfloat16 matrices are multiplied by; None: as float32),
        ``compiler``, ``threads``, ``cuda`` (torch's CUDA version or None), ``cuda_architectures``
        (those the kernels were built for), ``cuda_kernels`` (none, checked, not yet checked,
        unchecked, or failed and what), and ``missing``: a sentence for everything that is absent,
        with how to get it.
    """
    library: Any = None
    missing = []
    if ops.LIBRARY_ERROR is not None:
        missing.append(
            f"Compiled kernels ({ops.LIBRARY_ERROR}): the slower PyTorch reference runs. "
            f"Build them with: {ops.BUILD_COMMAND}"
        )
    else:
        library = importlib.import_module("dvae_fast._C")
    isa = bfloat16 = None
    if library is not None:
        try:
            isa, bfloat16 = library.isa(), library.bfloat16()
        except RuntimeError as error:  # DVAE_FAST_ISA names none, or one that is not here
            missing.append(str(error))
    architectures = ops.cuda_architectures()
    kernels = ops.cuda_kernels_state()
    if kernels.startswith("failed"):
        missing.append(
            f"CUDA kernels that were not found right here ({kernels}): the slower PyTorch "
            "reference runs in their place. The report: dvae-fast check"
        )
    if torch.cuda.is_available() and not architectures:
        missing.append(
            "CUDA kernels: tensors on the GPU use the slower PyTorch reference. They need nvcc "
            f"when dvae_fast is built: DVAE_FAST_CUDA=1 {ops.BUILD_COMMAND}"
        )
    return {
        "dvae_fast": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "compiled": ops.library_loaded(),
        "isa": isa,
        "isas": list(library.isas()) if library is not None else [],
        "bfloat16": bfloat16,
        "compiler": library.compiler() if library is not None else None,
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "cuda_architectures": architectures,
        "cuda_kernels": kernels,
        "missing": missing,
    }
