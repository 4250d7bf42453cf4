"""What compiled code calls as it is. Imported from there alone: it loads torch's compiler, which
takes as long to load as torch itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch

from dvae_fast.corruptions import base

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

__all__ = ["draw_copies"]

draw_copies = cast(
    "Callable[..., Tensor]",
    torch.compiler.disable(
        base.draw_copies,
        reason="a corruption of one's own draws from torch's generators, whose seed is read on the "
        "host; compile without fullgraph=True, or define draw(x, copies, key, first_example, "
        "first_copy)",
    ),
)
