"""Operator schemas, fake kernels, and loading of the compiled library.

The schemas and the fallback (`reference`, for every device) are registered here; the compiled
library only adds kernels for its devices, so everything works, more slowly, without it. Its CUDA
kernels it adds when asked to, operator by operator: at the first use of a GPU, those that
`checking.trust` found right there.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from dvae_fast import reference
from dvae_fast._dtypes import accumulation_dtype
from dvae_fast._vector_math import make_first_calls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from dvae_fast.checking.trust import Verdict

__all__ = [
    "BUILD_COMMAND",
    "CPU_ONLY",
    "LIBRARY_ERROR",
    "MASKABLE",
    "cuda_architectures",
    "cuda_kernels",
    "cuda_kernels_state",
    "hold_back",
    "library_loaded",
    "trust_all_kernels",
]

_IN_CHECKOUT = (Path(__file__).parents[1] / "setup.py").is_file()
BUILD_COMMAND = "python -m pip install --no-build-isolation " + (
    "-e ." if _IN_CHECKOUT else "--force-reinstall --no-deps . (in the sources)"
)

_NOISE = "Tensor seed, int first_example, int first_sample"
_LIKELIHOOD = "Tensor params, Tensor? scale, Tensor x"
_PASS = (
    "Tensor x, str corruption, Tensor rate, Tensor? salt, Tensor seed, int copies, int samples, "
    "int first_example"
)
_BOUND = (
    "str activation, str likelihood, bool outside, bool analytic, bool drops_score, bool doubly, "
    "float kl_weight"
)

_ADAM = (
    "Tensor(c!)[] means, Tensor(d!)[] squares, Tensor(e!)[] steps, float learning_rate, "
    "float beta1, float beta2, float epsilon, float weight_decay, str rule, float factor"
)

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
    "linear_log_weights": (
        "(Tensor hidden, Tensor weight, Tensor? bias, Tensor? scale, Tensor x, "
        "Tensor log_ratio, str likelihood) -> Tensor"
    ),
    "mlp_log_weights": (
        "(Tensor z, Tensor[] weights, Tensor[] biases, str activation, Tensor? scale, Tensor x, "
        "Tensor log_ratio, str likelihood) -> Tensor"
    ),
    "mlp_loss": (
        f"({_PASS}, Tensor[] encoder, Tensor[] decoder, {_BOUND}, bool bfloat16=False) "
        "-> (Tensor, Tensor[])"
    ),
    "mlp_step_": (
        f"({_PASS}, Tensor(a!)[] encoder, Tensor(b!)[] decoder, {_BOUND}, bool bfloat16, "
        f"{_ADAM}) -> (Tensor, Tensor)"
    ),
    "adam_": f"(Tensor(a!)[] parameters, Tensor[] grads, {_ADAM}) -> ()",
    "zero_inflated": (
        "(Tensor mean, Tensor scale, Tensor zero_logits, Tensor x, Tensor log_ratio, "
        "Tensor? mask) -> Tensor"
    ),
    "zero_inflated_backward": (
        "(Tensor grad, Tensor mean, Tensor scale, Tensor zero_logits, Tensor x, Tensor? mask) "
        "-> (Tensor, Tensor, Tensor)"
    ),
    "categorical": (
        "(Tensor logits, Tensor x, Tensor log_ratio, int classes, Tensor? mask) -> Tensor"
    ),
    "categorical_backward": (
        "(Tensor grad, Tensor logits, Tensor x, int classes, Tensor? mask) -> Tensor"
    ),
    "linear_log_weights_backward": (
        "(Tensor grad, Tensor hidden, Tensor weight, Tensor? bias, Tensor? scale, Tensor x, "
        "str likelihood) -> (Tensor, Tensor, Tensor, Tensor)"
    ),
}

#: Operators of which a mask may leave out elements: each also as masked_…, with the mask last. They
#: are operators of their own, so that a device may have the kernels of the ones and not the others.
MASKABLE = (
    "log_weights",
    "log_weights_backward",
    "iwae",
    "iwae_",
    "linear_log_weights",
    "linear_log_weights_backward",
    "mlp_log_weights",
)
_SCHEMAS.update(
    {f"masked_{name}": _SCHEMAS[name].replace(") ->", ", Tensor? mask) ->") for name in MASKABLE}
)


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


def _fake_mlp_loss(x: Tensor, *rest: Any) -> tuple[Tensor, list[Tensor]]:
    encoder, decoder = rest[7:9]
    return x.new_empty(()), [_like(t) for t in (*encoder, *decoder)]


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
    "linear_log_weights": lambda hidden, *_: _accumulated(hidden, *hidden.shape[:2]),
    "mlp_log_weights": lambda z, *_: _accumulated(z, *z.shape[:2]),
    "mlp_loss": _fake_mlp_loss,
    "mlp_step_": lambda x, *_: (x.new_empty(()), x.new_empty(())),
    "adam_": lambda *_: None,
    "zero_inflated": lambda mean, *_: _accumulated(mean, *mean.shape[:2]),
    "zero_inflated_backward": lambda grad, mean, scale, zero_logits, *_: (
        _like(mean),
        _like(scale),
        _like(zero_logits),
    ),
    "categorical": lambda logits, *_: _accumulated(logits, *logits.shape[:2]),
    "categorical_backward": lambda grad, logits, *_: _like(logits),
    "linear_log_weights_backward": lambda grad, hidden, weight, bias, scale, *_: (
        _like(hidden),
        _like(weight),
        weight.new_empty(weight.shape[0]),
        _optional_like(scale, hidden),
    ),
}
_FAKES.update({f"masked_{name}": _FAKES[name] for name in MASKABLE})


# --- kernels that wait for a verdict ----------------------------------------------------------


class Gate:
    """Stands before the kernels of some devices until the first call there.

    That call decides, for all operators and once: kernels that are trusted are registered with the
    dispatcher, which from then on goes straight to them; the others stay on the reference.
    """

    def __init__(self, devices: Iterable[str], decide: Callable[[], str]) -> None:
        """`decide` registers what is trusted, and returns a warning or ""."""
        self._devices, self._decide = frozenset(devices), decide
        self._lock = threading.Lock()

    def holds(self, args: tuple[Any, ...]) -> bool:
        """Whether a call would run on such a device: not where tensors stand for others."""
        for a in args:
            if isinstance(a, Tensor):
                return (
                    a.device.type in self._devices
                    and not isinstance(a, FakeTensor)
                    and not torch._C._functorch.is_functorch_wrapped_tensor(a)
                )
        return False

    def open(self) -> None:
        """Decides, or waits for the thread that does."""
        global _decision, _gate
        with self._lock:
            if _gate is not self:
                return
            try:
                warning = self._decide()
            except Exception as error:  # a user's call must not fail for want of a verdict
                _decision = f"failed: {type(error).__name__}: {error}"
                warning = (
                    f"dvae_fast: the kernels for this device could not be checked ({error!r}); "
                    "the slower PyTorch reference runs"
                )
            _gate = None
        if warning:
            try:
                warnings.warn(warning, RuntimeWarning, stacklevel=4)
            except RuntimeWarning:  # as errors; yet a user's call must not fail for being the first
                print(warning, file=sys.stderr)


_gate: Gate | None = None
#: registers the kernels of these operators with the dispatcher; None where no kernels wait
_enable: Callable[[Iterable[str]], None] | None = None
#: what came of it, or what to say of it; None: not decided
_decision: Verdict | str | None = None


def hold_back(devices: Iterable[str], enable: Callable[[Iterable[str]], None]) -> None:
    """Have kernels on `devices` wait for their check, after which `enable` gets those to use."""
    global _enable, _gate
    _enable, _gate = enable, Gate(devices, _ask_for_verdict)


def trust_all_kernels() -> None:
    """Use every kernel unchecked, as ``DVAE_FAST_CHECK=0`` does and the check itself must."""
    global _decision, _gate
    if _gate is not None and _enable is not None:
        _enable(_SCHEMAS)
        _decision, _gate = "unchecked (DVAE_FAST_CHECK=0)", None


def _ask_for_verdict() -> str:
    """Enable what the check found right on the devices of this process; what to warn of."""
    global _decision
    from dvae_fast.checking import trust

    verdict = trust.verdict()
    if verdict.trusted and _enable is not None:
        _enable([name for name in _SCHEMAS if name not in verdict.failed])
    _decision = verdict
    switch = os.environ.get("DVAE_FAST_CHECK", "")
    if switch in ("", "0", "1"):
        return verdict.warning
    note = f"DVAE_FAST_CHECK must be 0 or 1, or unset, got {switch!r}; the kernels are checked"
    return f"{verdict.warning}. {note}" if verdict.warning else f"dvae_fast: {note}"


def _fallback(name: str) -> Callable[..., Any]:
    """The reference; on a device whose kernels wait, first the verdict on them."""
    formula = getattr(reference, name)

    def run(*args: Any) -> Any:
        gate = _gate
        if gate is not None and gate.holds(args):
            gate.open()
            return getattr(torch.ops.dvae_fast, name).default(*args)
        return formula(*args)

    return run


def _mapped(name: str) -> Callable[..., Any]:
    """What `torch.vmap` runs of an operator called as such: one call for each of a batch."""

    def run(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        def at(i: int, arg: Any, dim: Any) -> Any:
            if isinstance(arg, (tuple, list)):
                return [at(i, a, d) for a, d in zip(arg, dim, strict=True)]
            return arg if dim is None else arg.select(dim, i)

        op = getattr(torch.ops.dvae_fast, name)
        results = [
            op(*(at(i, a, d) for a, d in zip(args, in_dims, strict=True)))
            for i in range(info.batch_size)
        ]
        if isinstance(results[0], tuple):
            return tuple(map(torch.stack, zip(*results, strict=True))), (0,) * len(results[0])
        return torch.stack(results), 0

    return run


# --- registration -----------------------------------------------------------------------------

_library = torch.library.Library("dvae_fast", "DEF")
for _name, _schema in _SCHEMAS.items():
    _library.define(_name + _schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(_name, _fallback(_name), "CompositeExplicitAutograd")
    torch.library.register_fake(f"dvae_fast::{_name}", _FAKES[_name], lib=_library)
    if "!" not in _schema:  # torch.vmap maps what writes to nothing
        torch.library.register_vmap(f"dvae_fast::{_name}", _mapped(_name), lib=_library)


def _load() -> str | None:
    """Load the compiled kernels; the reason if that is impossible."""
    try:
        importlib.import_module("dvae_fast._C")
    except ImportError as error:
        return str(error)
    return None


make_first_calls()

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


# --- CUDA kernels -----------------------------------------------------------------------------

#: Operators without a CUDA kernel: never called on a GPU, or by the reference there.
CPU_ONLY = (
    "mlp_log_weights",
    "masked_mlp_log_weights",
    "mlp_loss",
    "mlp_step_",
    "adam_",
    "zero_inflated",
    "zero_inflated_backward",
    "categorical",
    "categorical_backward",
)
_CUDA_KERNELS: bool = hasattr(torch.ops.dvae_fast, "_enable_cuda_kernel")


def cuda_kernels() -> bool:
    """Whether the compiled library has kernels for CUDA."""
    return library_loaded() and _CUDA_KERNELS


def cuda_architectures() -> list[str]:
    """Those the CUDA kernels were built for, as 8.0 or 9.0+PTX; none without such kernels."""
    return str(torch.ops.dvae_fast._cuda_architectures()).split() if cuda_kernels() else []


def _enable_cuda(names: Iterable[str]) -> None:
    for name in names:
        if name not in CPU_ONLY:
            torch.ops.dvae_fast._enable_cuda_kernel(name)


def _no_kernels() -> str:
    return (
        "dvae_fast: no CUDA kernels in this build; tensors on the GPU use the slower PyTorch "
        f"reference. With nvcc installed: DVAE_FAST_CUDA=1 {BUILD_COMMAND}"
    )


def cuda_kernels_state() -> str:
    """Of the CUDA kernels: none, checked, not yet checked, unchecked or failed, and what."""
    if not cuda_kernels():
        return "none"
    decision = _decision
    if decision is None and torch.cuda.is_available():
        from dvae_fast.checking import trust

        decision = trust.remembered()
    if decision is None:
        return "not yet checked"
    if isinstance(decision, str):
        return decision
    if not decision.trusted:
        return f"failed: {decision.reason}"
    return f"failed: {', '.join(decision.failed)}" if decision.failed else "checked"


if cuda_kernels():
    hold_back(("cuda",), _enable_cuda)
    if os.environ.get("DVAE_FAST_CHECK") == "0":
        trust_all_kernels()
elif library_loaded() and torch.version.cuda is not None:
    _gate = Gate(("cuda",), _no_kernels)
