"""Several processes, one on each share of the examples, as torchrun starts them.

``torchrun --nproc-per-node N`` tells each process its place in the environment (RANK, WORLD_SIZE,
LOCAL_RANK, MASTER_ADDR, MASTER_PORT); without it a process is a world of one and nothing here
communicates. gloo connects CPUs and carries what is on the CPU, NCCL what is on GPUs.
"""

from __future__ import annotations

import contextlib
import datetime
import math
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = [
    "TIMEOUT_VARIABLE",
    "DistributedError",
    "World",
    "all_gather_tensors",
    "all_max",
    "all_sum",
    "any_true",
    "barrier",
    "broadcast_object",
    "is_main_process",
    "join",
    "on_main",
    "patience",
    "share",
]

T = TypeVar("T")

#: environment variable: the seconds that a process waits for the others
TIMEOUT_VARIABLE = "DVAE_FAST_TIMEOUT"
_TIMEOUT = 300.0


class DistributedError(RuntimeError):
    """Another process of the run ended, or was silent for too long."""


@dataclass(frozen=True)
class World:
    """The processes of a run, and which of them this is.

    Attributes:
        rank: of this process, from 0.
        size: how many there are.
        local_rank: the rank among those of this machine.
        device: where this process works; in a world of several, its own GPU.
    """

    rank: int
    size: int
    local_rank: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which alone prints and writes files."""
        return self.rank == 0


# --- the environment --------------------------------------------------------------------------


def _integer(name: str, lower: int, upper: float = math.inf, default: int | None = None) -> int:
    text = os.environ.get(name)
    if text is None and default is not None:
        return default
    rule = f">= {lower}" if upper == math.inf else f"from {lower} to {upper - 1}"
    if text is None or not text.isdecimal() or not lower <= int(text) < upper:
        got = "it is not set" if text is None else f"got {text!r}"
        raise ValueError(f"{name} must be an integer {rule} in the environment; {got}")
    return int(text)


def _size() -> int:
    """WORLD_SIZE, or 1 outside torchrun."""
    names = ("RANK", "WORLD_SIZE")
    given = [name for name in names if name in os.environ]
    if len(given) == 1:
        raise ValueError(
            "the environment must hold RANK and WORLD_SIZE, as torchrun sets them, or neither; "
            f"it holds {given[0]} alone"
        )
    return _integer("WORLD_SIZE", 1) if given else 1


def is_main_process() -> bool:
    """Whether this is rank 0, or the only process; from the environment, before `join` too."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank() == 0
    return os.environ.get("RANK", "0") == "0" or os.environ.get("WORLD_SIZE", "1") == "1"


def patience() -> datetime.timedelta:
    """How long a process waits for the others, of DVAE_FAST_TIMEOUT."""
    text = os.environ.get(TIMEOUT_VARIABLE, "")
    try:
        seconds = float(text) if text else _TIMEOUT
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= 1e6:
        raise ValueError(f"{TIMEOUT_VARIABLE} must be seconds > 0 and <= 1e6, got {text!r}")
    return datetime.timedelta(seconds=seconds)


def _own_device(device: torch.device, local_rank: int) -> torch.device:
    if device.type != "cuda":
        return device
    if str(device) != "cuda":
        raise ValueError(
            "device must be cuda, without a number, in a world of several processes (each takes "
            f"the GPU of its LOCAL_RANK); got {device}"
        )
    if local_rank >= torch.cuda.device_count():
        raise ValueError(
            f"each process of a machine must have a GPU of its own: LOCAL_RANK is {local_rank}, "
            f"and torch sees {torch.cuda.device_count()} GPUs"
        )
    return torch.device("cuda", local_rank)


# --- joining ----------------------------------------------------------------------------------


@contextlib.contextmanager
def join(device: str | torch.device) -> Iterator[World]:
    """The world this process belongs to, connected within the block.

    A process group that is there already is used and left as it is. CPU processes share the
    machine's cores, unless OMP_NUM_THREADS is set, as torchrun does (to 1).

    Args:
        device: ``cpu``, ``cuda``, or, for a world of one, ``cuda:N``.

    Raises:
        ValueError: if the environment is half set, or there are more processes than GPUs.
        DistributedError: if the others cannot be reached; and, from within the block, if one ends
            or is silent for DVAE_FAST_TIMEOUT seconds (default 300).
    """
    where = torch.device(device)
    if dist.is_available() and dist.is_initialized():
        world = _existing(where)
        with _told_apart(world):
            yield world
        return
    size = _size()
    if size == 1:
        yield World(0, 1, 0, where)
        return
    if not dist.is_available():
        raise ValueError(f"WORLD_SIZE must be 1 with a torch without distributed, got {size}")
    rank = _integer("RANK", 0, size)
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if not os.environ.get(name):
            raise ValueError(f"{name} must be in the environment, as torchrun sets it; it is not")
    cuda = where.type == "cuda"
    local_rank = _integer("LOCAL_RANK", 0, default=None if cuda else rank)
    world = World(rank, size, local_rank, _own_device(where, local_rank))
    timeout = patience()
    with contextlib.ExitStack() as stack:
        if cuda:
            stack.enter_context(torch.cuda.device(world.device))
        elif "OMP_NUM_THREADS" not in os.environ:
            stack.enter_context(_share_of_threads(_integer("LOCAL_WORLD_SIZE", 1, default=size)))
        stack.enter_context(_told_apart(world))
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            rank=rank,
            world_size=size,
            timeout=timeout,
            device_id=world.device if cuda else None,
        )
        stack.callback(dist.destroy_process_group)
        yield world


def _existing(device: torch.device) -> World:
    rank, size = dist.get_rank(), dist.get_world_size()
    if size > 1 and str(device) == "cuda":
        chosen = torch.cuda.current_device() if torch.cuda.is_available() else 0
        device = _own_device(device, _integer("LOCAL_RANK", 0, default=chosen))
    if size > 1 and device.type not in _carriers():
        raise ValueError(
            f"device must be one that the process group carries ({', '.join(_carriers())}), "
            f"got {device}"
        )
    return World(rank, size, _integer("LOCAL_RANK", 0, default=rank), device)


@contextlib.contextmanager
def _share_of_threads(processes: int) -> Iterator[None]:
    old = torch.get_num_threads()
    torch.set_num_threads(max(1, old // processes))
    try:
        yield
    finally:
        torch.set_num_threads(old)


#: what gloo, which raises plain RuntimeErrors, says of connections alone
_LOST = ("/gloo/", "pair closure", "onnection closed", "onnection reset")


def _reason(error: RuntimeError) -> str:
    """Without gloo's place in its source, and without its advice."""
    text = re.sub(r"^\[\S*/gloo/\S*\] ", "", str(error).strip())
    return text.splitlines()[0].partition(". ")[0][:200]


@contextlib.contextmanager
def _told_apart(world: World) -> Iterator[None]:
    """Errors of a connection become a DistributedError; all others pass."""
    try:
        yield
    except DistributedError:
        raise
    except RuntimeError as error:
        known = getattr(dist, "DistError", ())
        if not isinstance(error, known) and not any(text in str(error) for text in _LOST):
            raise
        raise DistributedError(
            f"rank {world.rank} of {world.size} lost touch with the others: one ended, or was "
            f"silent for longer than {TIMEOUT_VARIABLE} ({patience().total_seconds():g} s); "
            f"what the first to end said tells why ({_reason(error)})"
        ) from error


# --- shares and collectives -------------------------------------------------------------------


def share(count: int, world: World) -> tuple[int, int]:
    """[start, stop): this rank's of `count` things in a row; sizes differ by one at most."""
    return count * world.rank // world.size, count * (world.rank + 1) // world.size


def _carriers() -> list[str]:
    """The types of device whose tensors the group carries: ["cpu", "cuda"], say."""
    config = dist.get_backend_config()
    return [part.partition(":")[0] for part in config.split(",")]


def _carried(t: Tensor, world: World) -> Tensor:
    """`t` where the group can carry it."""
    return t if t.device.type in _carriers() else t.to(world.device)


def all_gather_tensors(t: Tensor, world: World) -> list[Tensor]:
    """Every rank's `t`, in the order of ranks, on `t`'s device.

    Args:
        t: (n, *S) of any dtype; n may differ between ranks and be 0, S and the dtype may not.

    Raises:
        ValueError: on every rank, if S or the dtype's size differ.
    """
    if t.dim() < 1:
        raise ValueError("t must have at least one dimension, got a scalar")
    if world.size == 1:
        return [t]
    row = math.prod(t.shape[1:]) * t.element_size()
    here = _carried(torch.tensor([t.shape[0], row]), world)
    sizes = [torch.empty_like(here) for _ in range(world.size)]
    dist.all_gather(sizes, here)
    counts, rows = zip(*(size.tolist() for size in sizes), strict=True)
    if len(set(rows)) > 1:
        raise ValueError(
            f"t must have rows of one size on every rank, got rows of {rows} bytes by rank"
        )
    # As bytes, padded to the longest: every dtype goes, also those that a backend cannot add.
    data = _carried(t.detach().contiguous().reshape(-1).view(torch.uint8), world)
    padded = data.new_zeros(max(counts) * row)
    padded[: len(data)] = data
    parts = [torch.empty_like(padded) for _ in range(world.size)]
    dist.all_gather(parts, padded)
    return [
        part[: count * row].to(t.device).view(t.dtype).view(count, *t.shape[1:])
        for part, count in zip(parts, counts, strict=True)
    ]


def all_sum(t: Tensor, world: World) -> Tensor:
    """Σ of every rank's `t`, the same on all; `t` itself is not changed."""
    if world.size == 1:
        return t
    total = _carried(t.detach().clone(), world)
    dist.all_reduce(total)
    return total.to(t.device)


def all_max(values: Sequence[int], world: World) -> list[int]:
    """The largest of every rank's, number by number; the same on all."""
    if world.size == 1:
        return list(values)
    t = _carried(torch.tensor(values, dtype=torch.int64), world)
    dist.all_reduce(t, dist.ReduceOp.MAX)
    return cast("list[int]", t.tolist())


def any_true(flag: bool, world: World) -> bool:
    """Whether `flag` is true on any rank; the same on all."""
    return bool(all_max([int(flag)], world)[0])


def broadcast_object(value: T, world: World) -> T:
    """Rank 0's `value` (anything that pickles), on every rank."""
    if world.size == 1:
        return value
    box = [value]
    device = None if "cpu" in _carriers() else world.device
    dist.broadcast_object_list(box, src=0, device=device)
    return box[0]


def on_main(function: Callable[[], T], world: World) -> T:
    """What `function` returns, or raises, on rank 0, which alone calls it; the same on all.

    On the others the error's cause is a `DistributedError`, which tells that it is not theirs.
    """
    if world.size == 1:
        return function()
    result: tuple[Any, Exception | None] = (None, None)
    if world.is_main:
        try:
            result = (function(), None)
        except Exception as error:
            result = (None, error)
    value, raised = broadcast_object(result, world)
    if raised is not None and not world.is_main:
        raise raised from DistributedError("raised on rank 0")
    if raised is not None:
        raise raised
    return cast("T", value)


def barrier(world: World) -> None:
    """Wait until every rank is here."""
    any_true(False, world)
