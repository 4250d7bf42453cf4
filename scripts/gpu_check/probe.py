"""Whether dvae_fast's library loads and its kernels run on a device, as one line of JSON.

python scripts/gpu_check/probe.py DEVICE [cuda]

A kernel is launched, for that alone shows that the library has code for this GPU. With `cuda` the
library must have kernels for GPUs whatever the device is: where it is built there may be none.

The reference would give the same numbers, so torch's profiler is asked whose kernels ran; where it
sees none at all, which it may on some machines, nothing is concluded.
"""

from __future__ import annotations

import json
import sys
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def kernels_of(call: Callable[[], object]) -> list[str]:
    """Names of the GPU's kernels that a call launches; none where they cannot be seen."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    try:
        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            call()
            torch.cuda.synchronize()
        return [e.name for e in seen.events() if e.device_type.name == "CUDA"]
    except Exception as error:
        print(f"no profile: {error}", file=sys.stderr)
        return []


def main(device: str, cuda: bool) -> None:
    warnings.simplefilter("ignore")
    import torch

    import dvae_fast
    from dvae_fast import ops, reference

    if not ops.library_loaded():
        raise RuntimeError(f"the library does not load: {ops.LIBRARY_ERROR}")
    if cuda and not ops.cuda_kernels():
        raise RuntimeError("the library has no CUDA kernels")
    log_w = torch.linspace(-3, 5, 1001).repeat(3, 1).to(device)
    bound = dvae_fast.logmeanexp(log_w).double()
    worst = (bound - reference.logmeanexp(log_w.double())).abs().max().item()
    if not worst < 1e-5:
        raise RuntimeError(f"logmeanexp is off by {worst:g} nats")
    seen = kernels_of(lambda: dvae_fast.logmeanexp(log_w)) if device != "cpu" else []
    if seen and not any("dvae" in name for name in seen):
        raise RuntimeError(f"the reference runs instead of a kernel: {', '.join(seen)[:300]}")
    print(json.dumps({"torch": torch.__version__, "error": worst, "kernels": seen}))


if __name__ == "__main__":
    try:
        main(sys.argv[1], sys.argv[1] != "cpu" or "cuda" in sys.argv[2:])
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {error}".splitlines()[0])
