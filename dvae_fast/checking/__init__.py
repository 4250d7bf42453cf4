"""Whether the compiled operators are right on this machine.

`check` runs the table of cases that the tests use. On a GPU the package runs it by itself, once for
each build and kind of device, before it uses its kernels there: see `trust`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dvae_fast.checking import trust
from dvae_fast.checking.machine import CheckError, resolve_device
from dvae_fast.checking.report import CheckReport, Row

if TYPE_CHECKING:
    import torch

__all__ = ["CheckError", "CheckReport", "Row", "check"]


def check(device: str | torch.device | None = None, *, small: bool = False) -> CheckReport:
    """Hold every operator, forward and backward, to the float64 reference.

    Each dtype, odd sizes, layouts that are not contiguous, no examples; masks bit for bit; the
    public functions and their gradients; on a CPU every instruction set it has; on a GPU also
    inside a captured graph. An operator that is wrong, or raises, does not stop the others.

    On a GPU the check runs in a process of its own, which a kernel may break without harm to this
    one, and the verdict is remembered: from the next start on, operators that failed run the
    reference.

    Args:
        device: cpu, cuda or cuda:N; by default a GPU if there is one.
        small: few cases of few elements; nothing is remembered.

    Returns:
        The report: true where all passed; ``print`` it for a table.

    Raises:
        CheckError: if the check cannot be made, in one line.
    """
    where = resolve_device(device)
    if where.type == "cpu":
        from dvae_fast.checking.run import run_checks

        return run_checks(where, small=small)
    return trust.renew(str(where), small=small)
