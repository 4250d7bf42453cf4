"""The compiled library's CUDA kernels serve on request, operator by operator. Needs no GPU."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from dvae_fast import ops

pytestmark = pytest.mark.skipif(
    not (ops.library_loaded() and hasattr(torch.ops.dvae_fast, "_cuda_architectures")),
    reason="this build has no CUDA kernels",
)

# The library alone, without dvae_fast/ops.py, which enables kernels by itself.
PRELUDE = """
import sys, warnings
import torch

warnings.simplefilter("error")
torch.ops.load_library(sys.argv[1])
library = torch.library.Library("dvae_fast", "FRAGMENT")
schemas = {
    "softplus": "(Tensor x) -> Tensor",
    "logmeanexp": "(Tensor log_w) -> Tensor",
    "mixture_log_ratio": "(Tensor z, Tensor mean, Tensor log_var) -> (Tensor, Tensor)",
    "log_weights": (
        "(Tensor params, Tensor? scale, Tensor x, Tensor log_ratio, str likelihood) -> Tensor"
    ),
}
for name, schema in schemas.items():
    library.define(name + schema)

def enable(*names):
    for name in names:
        torch.ops.dvae_fast._enable_cuda_kernel(name)

def enabled():
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    return [name for name in schemas if has(f"dvae_fast::{name}", "CUDA")]
"""


def _run(program: str) -> None:
    library = sys.modules["dvae_fast._C"].__file__
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + program, str(library)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "verrid" not in done.stderr, done.stderr  # torch, of a kernel in another's place


def test_loading_registers_none_and_a_request_those_it_names() -> None:
    _run("""
assert enabled() == []
enable("softplus", "log_weights")
assert enabled() == ["softplus", "log_weights"]
enable("softplus")
enable("softplus", "logmeanexp")
assert enabled() == ["softplus", "logmeanexp", "log_weights"]
assert torch.ops.dvae_fast.softplus(torch.zeros(2)).tolist() == [torch.tensor(2.0).log().item()] * 2
""")


def test_an_operator_may_enable_itself_while_its_reference_runs() -> None:
    _run("""
import threading

def reference(x):
    enable("softplus")
    return x

library.impl("softplus", reference, "SparseCPU")
x = torch.eye(3).to_sparse()
threads = [threading.Thread(target=torch.ops.dvae_fast.softplus, args=(x,)) for _ in range(8)]
for t in threads:
    t.start()
for t in threads:
    t.join()
assert enabled() == ["softplus"]
assert torch.ops.dvae_fast.softplus(x) is not None
""")


def test_unknown_names_are_refused_and_the_known_ones_named() -> None:
    _run("""
for wrong in ("softmax", "", " softplus", "softplus,logmeanexp", "mlp_log_weights"):
    try:
        enable(wrong)
    except RuntimeError as error:
        assert "name must be an operator with a CUDA kernel, one of corrupt, " in str(error), error
        assert str(error).endswith(f"; got {wrong}"), error
    else:
        raise AssertionError(wrong)
assert enabled() == []
""")


def test_a_tensor_of_the_cpu_is_refused() -> None:
    _run("""
enable(*schemas)
cuda = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
z, mean = torch.zeros(2, 3, 4), torch.zeros(1, 2, 4)
for name, arguments in {
    "softplus": (torch.zeros(3),),
    "logmeanexp": (torch.zeros(2, 3),),
    "mixture_log_ratio": (z, mean, mean),
    "log_weights": (z, None, torch.zeros(2, 4), torch.zeros(2, 3), "bernoulli"),
}.items():
    try:
        getattr(torch.ops.dvae_fast, name).default.redispatch(cuda, *arguments)
    except RuntimeError as error:
        assert "all tensors must be on one GPU, got one on the CPU" in str(error), error
    else:
        raise AssertionError(name)
""")


def test_architectures() -> None:
    names = torch.ops.dvae_fast._cuda_architectures().split()
    assert names
    assert all(name[0].isdigit() and "." in name for name in names)
