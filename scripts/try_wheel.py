"""Tries an installed dvae_fast: that its kernels load, and agree with the reference.

Needs torch and NumPy alone. Run it outside the checkout, whose package it would take otherwise.
"""

from __future__ import annotations

import warnings
from pathlib import Path

warnings.simplefilter("error", RuntimeWarning)  # of a library that does not load

import torch  # noqa: E402

import dvae_fast  # noqa: E402
from dvae_fast import reference  # noqa: E402
from dvae_fast.corruptions import Masking  # noqa: E402

info = dvae_fast.build_info()
assert info["compiled"], info
assert info["isa"] in info["isas"], info
assert not Path(dvae_fast.__file__).is_relative_to(Path(__file__).parents[1] / "dvae_fast"), info

g = torch.Generator().manual_seed(0)
params, x = torch.randn(3, 5, 70, generator=g), torch.rand(3, 70, generator=g)
log_ratio = torch.randn(3, 5, generator=g)
got = dvae_fast.log_weights(params, x, log_ratio)
torch.testing.assert_close(got, reference.log_weights(params, None, x, log_ratio, "bernoulli"))
params.requires_grad_()
dvae_fast.iwae_loss(params, x, log_ratio).backward()
bound = reference.logmeanexp(reference.log_weights(params, None, x, log_ratio, "bernoulli"))
expected = torch.autograd.grad(-bound.mean(), params)[0]
torch.testing.assert_close(params.grad, expected)
seed = torch.tensor([7])
noisy = dvae_fast.corrupt(x, Masking(0.3), copies=2, seed=7)
rate = torch.tensor([0.3])
assert torch.equal(noisy, reference.corrupt(x, "masking", rate, None, seed, 2, 0, 0))
print(f"dvae_fast {info['dvae_fast']}, Python {info['python']}, torch {info['torch']}: it works")
