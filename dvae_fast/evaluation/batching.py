"""How much of an evaluation a GPU takes at once, what to do where that does not fit in its memory,
and how results leave it while it works on."""

from __future__ import annotations

import re
import sys
import warnings
from collections import deque
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dvae_fast import ops
from dvae_fast.files import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from dvae_fast.evaluation.statistics import Statistics

    T = TypeVar("T")

__all__ = [
    "Fetch",
    "Launched",
    "Limits",
    "fitting",
    "free_memory",
    "held",
    "memory_of",
    "out_of_memory",
    "plan",
    "several",
    "wanted",
]

# Rows (examples × samples) to decode at once: the work of milliseconds, against some 0.1 ms that it
# takes to launch. Not measured yet.
_ROWS = 1 << 20
# Given of a batch: the statistics launch some 200 small kernels a batch, however large it is.
_EXAMPLES = 512
# Bytes to hold at once, of however much there is: more would make nothing faster.
_BYTES = 8 << 30
# Of a sample in the statistics: log-weights that wait, and float64 copies of them.
_STATISTICS = 256
# What a trial to find the size of a row may hold.
_TRIAL_BYTES, _TRIAL_SAMPLES = 64 << 20, 1024


# --- the plan -------------------------------------------------------------------------------------


def plan(
    examples: int,
    k: int,
    *,
    row: int,
    example: int,
    free: int,
    batch_size: int | None = None,
    chunk: int | None = None,
    several: int = _EXAMPLES,
    rows: int = _ROWS,
) -> tuple[int, int, int]:
    """(batch_size, chunk, rows) of an evaluation on a GPU; those given are kept. The rows are what
    fits at once beside a batch.

    Several hundred examples a batch, more where k is small, and samples as many as make `rows` rows
    with them, or as fit in half of the free memory. Batches are of equal size, chunks too, as far
    as that goes: shapes that come again find kernels, and memory, that are there already.

    Args:
        examples: of this process, >= 1.
        k: samples of each.
        row: bytes that one sample of one example holds.
        example: bytes that an example holds, however many samples are drawn.
        free: bytes.
        several: examples wanted in a batch.
        rows: wanted at once.
    """
    room = min(free // 2, _BYTES)
    row, example = row + _STATISTICS, max(1, example)
    rows = max(1, min(rows, room // row))
    if batch_size is None:
        wanted = max(several, rows // k) if chunk is None else rows // min(chunk, k)
        # Half of the room for the examples, and a row for each.
        fit = min(room // 2 // example, room // (example + row))
        most = max(1, min(wanted, rows, fit))
        batch_size = _even(examples, most)
    rows = max(1, min(rows, (room - batch_size * example) // row))
    if chunk is None:
        chunk = _even(k, max(1, rows // batch_size))
    return batch_size, min(chunk, k), rows


def _even(total: int, most: int) -> int:
    """The size of equal parts of `total`, as few as there can be of at most `most`."""
    parts = -(-total // most)
    return -(-total // parts)


def several(device: torch.device) -> int:
    """Given of a batch. The reference launches kernels for each one and chunk: the longer these,
    the fewer."""
    return 1 if _reference(device) else _EXAMPLES


def _reference(device: torch.device) -> bool:
    return device.type == "cuda" and not ops.cuda_kernels()


def free_memory(device: torch.device) -> int | None:
    """Bytes that tensors can take there; None where nothing tells, or on a CPU, where what counts
    is the cache."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    # What torch's allocator keeps for the next tensors is free too.
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


class _Held(TorchDispatchMode):
    """Follows the tensors that operators return: bytes of those alive, at most."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for key in [key for key, (storage, _) in self._alive.items() if storage.expired()]:
            del self._alive[key]
        self._see((args, kwargs), counts=False)  # weights and data, and views of them
        out = func(*args, **(kwargs or {}))
        self._see(out, counts=True)
        self.most = max(self.most, sum(size for _, size in self._alive.values()))
        return out

    def _see(self, tree: Any, *, counts: bool) -> None:
        for t in tree_leaves(tree):
            if isinstance(t, Tensor) and t.layout == torch.strided:
                storage = t.untyped_storage()
                if storage._cdata not in self._alive:
                    size = storage.nbytes() if counts else 0
                    self._alive[storage._cdata] = (StorageWeakRef(storage), size)


def held(call: Callable[[], object]) -> int:
    """Bytes of the tensors that `call` makes, of those that are alive at once."""
    # A compiled decoder is one operator to the mode, or an error: its layers hold no less.
    mode = _Held()
    with torch.compiler.set_stance("force_eager"), mode:
        call()
    return mode.most


def memory_of(
    draw: Callable[[int], Tensor], latent: int, device: torch.device, limits: Limits
) -> int:
    """Bytes of a row: of one sample of one example. `draw` makes the log-weights of some."""
    row = held(lambda: draw(1))
    # Weights that autocast copies, and the like, count less in many.
    samples = max(1, min(_TRIAL_SAMPLES, _TRIAL_BYTES // max(1, row)))
    many = limits.attempt(lambda: held(lambda: draw(samples)))
    row = row if many is None else -(-many // samples)
    if _reference(device):
        # The reference draws noise as int64 words, of which it holds a dozen at once.
        row += 128 * (-(-latent // 16) * 16)
    return row


# --- where it does not fit ------------------------------------------------------------------------

# What a failed allocation says, but for torch's own on a GPU: CUDA's libraries, torch on a CPU, and
# torch's C interface, which the kernels allocate by and which does not tell why it failed.
_SIGNS = (
    "out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "can't allocate memory",
    "aoti_torch_empty_strided(",
)  # fmt: skip


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


def wanted(error: BaseException | str) -> str:
    """What an error that a size is too large tells in plain words; "" for nothing."""
    text = str(error)
    if found := re.search(r"tried to allocate (\d+) bytes", text):
        return f"{int(found[1]) / 2**30:,.4g} GiB are not to be had"
    if re.search("overflow|too large to convert", text, re.I):
        return "no index counts so many numbers"
    return "" if "aoti_torch" in text else one_line(text)


class Limits:
    """How much can be taken at once, as far as has been found out, for the rest of an evaluation.

    Args:
        given: sizes of the caller's own, in words: it warns where those have to give way.
        whole: other processes work on the same batches, which must not be divided.
    """

    def __init__(self, given: str = "", *, whole: bool = False) -> None:
        self.rows = self.examples = sys.maxsize
        self._given, self._whole, self._reason = given, whole, ""

    def samples(self, examples: int) -> int:
        return max(1, self.rows // examples)

    def attempt(self, call: Callable[[], T]) -> T | None:
        """What `call` returns, or None where memory ran out; whatever it held is free then."""
        try:
            return call()
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            self._reason = str(error)
        return None

    def in_parts(self, draw: Callable[[int, int], Tensor], examples: int, k: int) -> Tensor:
        """(examples, k) of `draw(samples, first)`, in as many parts as it takes.

        Raises:
            OutOfMemoryError: if not one sample of so many examples fits.
        """
        parts: list[Tensor] = []
        done = 0
        while done < k:
            n, first = min(k - done, self.samples(examples)), done
            part = self.attempt(lambda: draw(n, first))  # noqa: B023 called at once
            if part is not None:
                parts.append(part)
                done += n
            elif n > 1:
                self.rows = examples * n // 2
                self._warn(f"{self.rows} rows (examples × samples)")
            else:
                raise torch.OutOfMemoryError(self._reason)
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def fewer_examples(self, examples: int) -> None:
        """After `examples` were too many.

        Raises:
            OutOfMemoryError: if there must not be fewer.
        """
        if examples == 1 or self._whole:
            reason = wanted(self._reason)
            raise torch.OutOfMemoryError(
                f"batch_size = {examples} and chunk = 1, which is {examples} rows at once, do not "
                f"fit in memory{reason and f': {reason}'}"
            )
        self.examples = examples // 2
        self._warn(f"{self.examples} examples")

    def _warn(self, instead: str) -> None:
        if self._given:
            warnings.warn(
                f"{self._given} does not fit in memory; the evaluation goes on with {instead} at "
                "once",
                RuntimeWarning,
                stacklevel=2,
            )
            self._given = ""


def fitting(
    ranges: Iterable[tuple[int, int]], limits: Limits, run: Callable[[int, int], T]
) -> Iterator[tuple[int, T]]:
    """(first, run(first, stop)) of all examples of `ranges`, in smaller ranges where those given
    do not fit."""
    left = deque(ranges)
    while left:
        first, stop = left.popleft()
        if stop - first > limits.examples:
            left.appendleft((first + limits.examples, stop))
            stop = first + limits.examples
        result = limits.attempt(lambda: run(first, stop))  # noqa: B023 called at once
        if result is None:
            limits.fewer_examples(stop - first)
            left.appendleft((first, stop))
        else:
            yield first, result


# --- transfers ------------------------------------------------------------------------------------


class Fetch:
    """A tensor on its way to the host."""

    def __init__(self, t: Tensor) -> None:
        self._from, self._event = t, None
        if t.device.type == "cuda":
            self._from = torch.empty(t.shape, dtype=t.dtype, device="cpu", pin_memory=True)
            self._from.copy_(t, non_blocking=True)
            self._event = torch.cuda.Event()
            # Of the transfer alone: a plain copy would also wait for whatever is launched since.
            self._event.record(torch.cuda.current_stream(t.device))

    def get(self) -> Tensor:
        """The tensor, waited for."""
        if self._event is not None:
            self._event.synchronize()
        return self._from.cpu()


class Launched:
    """A batch on its way: its numbers are on the host, in one transfer, when asked for.

    Args:
        parts: statistics of some of its examples, and which of its rows these are.
    """

    def __init__(self, parts: list[tuple[Statistics, list[int]]]) -> None:
        packed = [statistics.packed() for statistics, _ in parts]
        self._parts, self._fetch = parts, Fetch(packed[0] if len(parts) == 1 else torch.cat(packed))

    def fields(self) -> dict[str, Tensor]:
        """The fields of `LikelihoodEstimate` for the batch."""
        sections = self._fetch.get().split([len(rows) for _, rows in self._parts])
        done = [s.fields(section) for (s, _), section in zip(self._parts, sections, strict=True)]
        if len(done) == 1:
            return done[0]
        order = [row for _, rows in self._parts for row in rows]
        back = torch.tensor(order, device="cpu").argsort()
        return {name: torch.cat([part[name] for part in done])[back] for name in done[0]}
