"""Operator schemas, fake kernels, and loading of the compiled library.

The schemas and the fallback (`reference`, for every device) are registered here; the compiled
library only adds kernels for its devices, so everything works, more slowly, without it.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dvae_fast import reference
from dvae_fast._dtypes import accumulation_dtype

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["BUILD_COMMAND", "LIBRARY_ERROR", "cuda_kernels", "library_loaded"]

BUILD_COMMAND = "python -m pip install --no-build-isolation -e ."

_NOISE = "Tensor seed, int first_example, int first_sample"
_LIKELIHOOD = "Tensor params, Tensor? scale, Tensor x"

_SCHEMAS = {
    "corrupt": (
        "(Tensor x, str kind, Tensor rate, Tensor? salt, Tensor seed, int copies, "
        "int first_example, int first_copy) -> Tensor"
    ),
    "corrupt_backward": (
        "(Tensor grad, str kind, Tensor rate, Tensor? salt, Tensor seed, "
        "int first_example, int first_copy) -> Tensor"
    ),
    "corrupt_backward_std": (
        "(Tensor grad, Tensor std, Tensor seed, int first_example, int first_copy) -> Tensor"
    ),
    "sample_latent": f"(Tensor mean, Tensor log_var, int k, {_NOISE}) -> (Tensor, Tensor)",
    "sample_latent_backward": (
        "(Tensor? grad_z, Tensor? grad_log_ratio, Tensor mean, Tensor log_var, int k, "
        f"{_NOISE}) -> (Tensor, Tensor)"
    ),
    "latent_log_ratio": "(Tensor z, Tensor mean, Tensor log_var) -> Tensor",
    "latent_log_ratio_backward": (
        "(Tensor grad, Tensor z, Tensor mean, Tensor log_var) -> (Tensor, Tensor, Tensor)"
    ),
    "mixture_log_ratio": "(Tensor z, Tensor mean, Tensor log_var) -> (Tensor, Tensor)",
    "mixture_log_ratio_backward": (
        "(Tensor grad, Tensor weights, Tensor z, Tensor mean, Tensor log_var) "
        "-> (Tensor, Tensor, Tensor)"
    ),
    "log_weights": f"({_LIKELIHOOD}, Tensor log_ratio, str likelihood) -> Tensor",
    "log_weights_backward": f"(Tensor grad, {_LIKELIHOOD}, str likelihood) -> (Tensor, Tensor)",
    "logmeanexp": "(Tensor log_w) -> Tensor",
    "logmeanexp_backward": "(Tensor grad, Tensor log_w) -> Tensor",
    "iwae": (
        f"({_LIKELIHOOD}, Tensor log_ratio, str likelihood, float multiplier) "
        "-> (Tensor, Tensor, Tensor, Tensor)"
    ),
    "iwae_": (
        "(Tensor(a!) params, Tensor? scale, Tensor x, Tensor log_ratio, str likelihood, "
        "float multiplier) -> (Tensor, Tensor, Tensor)"
    ),
    "softplus": "(Tensor x) -> Tensor",
    "softplus_backward": "(Tensor grad, Tensor out) -> Tensor",
    "rescale_": "(Tensor(a!) grad, Tensor factor) -> ()",
    "lse_update": "(Tensor state, Tensor log_w) -> Tensor",
    "lse_merge": "(Tensor a, Tensor b) -> Tensor",
    "linear_log_weights": (
        "(Tensor hidden, Tensor weight, Tensor? bias, Tensor? scale, Tensor x, "
        "Tensor log_ratio, str likelihood) -> Tensor"
    ),
    "mlp_log_weights": (
        "(Tensor z, Tensor[] weights, Tensor[] biases, str activation, Tensor? scale, Tensor x, "
        "Tensor log_ratio, str likelihood) -> Tensor"
    ),
    "linear_log_weights_backward": (
        "(Tensor grad, Tensor hidden, Tensor weight, Tensor? bias, Tensor? scale, Tensor x, "
        "str likelihood) -> (Tensor, Tensor, Tensor, Tensor)"
    ),
}


# --- fake kernels: shapes and dtypes only -----------------------------------------------------


def _accumulated(t: Tensor, *shape: Any) -> Tensor:
    return t.new_empty(shape, dtype=accumulation_dtype(t.dtype))


def _like(t: Tensor) -> Tensor:
    return t.new_empty(t.shape)


def _optional_like(t: Tensor | None, source: Tensor) -> Tensor:
    return source.new_empty(0) if t is None else _like(t)


def _fake_sample_latent(mean: Tensor, log_var: Tensor, k: int, *_: Any) -> tuple[Tensor, Tensor]:
    copies, examples, size = mean.shape
    return mean.new_empty(copies, examples, k, size), _accumulated(mean, copies, examples, k)


_FAKES: dict[str, Callable[..., Any]] = {
    "corrupt": lambda x, kind, rate, salt, seed, copies, *_: x.new_empty(copies, *x.shape),
    "corrupt_backward": lambda grad, *_: grad.new_empty(grad.shape[1:]),
    "corrupt_backward_std": lambda grad, std, *_: _like(std),
    "sample_latent": _fake_sample_latent,
    "sample_latent_backward": lambda gz, gr, mean, log_var, *_: (_like(mean), _like(log_var)),
    "latent_log_ratio": lambda z, *_: _accumulated(z, *z.shape[:2]),
    "latent_log_ratio_backward": lambda g, z, mean, log_var: (
        _like(z),
        _like(mean),
        _like(log_var),
    ),
    "mixture_log_ratio": lambda z, mean, log_var: (
        _accumulated(z, *z.shape[:2]),
        _accumulated(z, *z.shape[:2], mean.shape[0]),
    ),
    "mixture_log_ratio_backward": lambda g, w, z, mean, log_var: (
        _like(z),
        _like(mean),
        _like(log_var),
    ),
    "log_weights": lambda params, *_: _accumulated(params, *params.shape[:2]),
    "log_weights_backward": lambda grad, params, scale, *_: (
        _like(params),
        _optional_like(scale, params),
    ),
    "logmeanexp": lambda log_w: log_w.new_empty(log_w.shape[0]),
    "logmeanexp_backward": lambda grad, log_w: _like(log_w),
    "iwae": lambda params, scale, *_: (
        _accumulated(params, params.shape[0]),
        _accumulated(params, *params.shape[:2]),
        _like(params),
        _optional_like(scale, params),
    ),
    "iwae_": lambda params, scale, *_: (
        _accumulated(params, params.shape[0]),
        _accumulated(params, *params.shape[:2]),
        _optional_like(scale, params),
    ),
    "softplus": _like,
    "softplus_backward": lambda grad, out: _like(out),
    "rescale_": lambda grad, factor: None,
    "lse_update": lambda state, log_w: _like(state),
    "lse_merge": lambda a, b: _like(a),
    "linear_log_weights": lambda hidden, *_: _accumulated(hidden, *hidden.shape[:2]),
    "mlp_log_weights": lambda z, *_: _accumulated(z, *z.shape[:2]),
    "linear_log_weights_backward": lambda grad, hidden, weight, bias, scale, *_: (
        _like(hidden),
        _like(weight),
        weight.new_empty(weight.shape[0]),
        _optional_like(scale, hidden),
    ),
}


# --- registration -----------------------------------------------------------------------------


_library = torch.library.Library("dvae_fast", "DEF")


for _name, _schema in _SCHEMAS.items():
    _library.define(_name + _schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(_name, getattr(reference, _name), "CompositeExplicitAutograd")
    torch.library.register_fake(f"dvae_fast::{_name}", _FAKES[_name], lib=_library)


def _load() -> str | None:
    """Load the compiled kernels; the reason if that is impossible."""
    try:
        importlib.import_module("dvae_fast._C")
    except ImportError as error:
        return str(error)
    return None


#: why the compiled library could not be loaded, or None
LIBRARY_ERROR: str | None = _load()


if LIBRARY_ERROR is not None:
    warnings.warn(
        f"dvae_fast: no compiled kernels ({LIBRARY_ERROR}); using the slower PyTorch reference. "
        f"Build them with: {BUILD_COMMAND}",
        RuntimeWarning,
        stacklevel=2,
    )


def library_loaded() -> bool:
    """Whether the compiled kernels are in use."""
    return LIBRARY_ERROR is None and "dvae_fast._C" in sys.modules


def cuda_kernels() -> bool:
    """Whether the compiled library has kernels for CUDA."""
    return library_loaded() and _CUDA_KERNELS


# --- CUDA tensors without CUDA kernels --------------------------------------------------------


_CUDA_KERNELS: bool = torch._C._dispatch_has_kernel_for_dispatch_key("dvae_fast::iwae", "CUDA")


def _reference_on_cuda(name: str) -> Callable[..., Any]:
    """The reference, which says so at the first call of any operator."""

    def run(*args: Any) -> Any:
        global _cuda_warning_due
        if _cuda_warning_due:
            _cuda_warning_due = False
            warnings.warn(
                "dvae_fast: no CUDA kernels in this build; tensors on the GPU use the slower "
                f"PyTorch reference. With nvcc installed: DVAE_FAST_CUDA=1 {BUILD_COMMAND}",
                RuntimeWarning,
                stacklevel=2,
            )
        return getattr(reference, name)(*args)

    return run


_cuda_warning_due = True


if library_loaded() and not _CUDA_KERNELS and torch.version.cuda is not None:
    for _name in _SCHEMAS:
        _library.impl(_name, _reference_on_cuda(_name), "CUDA")
