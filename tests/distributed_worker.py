"""What one of the processes of `test_distributed` runs; each check is told in a file of its rank.

    python distributed_worker.py CHECKS FOLDER

with the environment that torchrun would set.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
import torch.distributed as dist

from dvae_fast import distributed as d

if TYPE_CHECKING:
    from collections.abc import Callable


# --- the helpers ------------------------------------------------------------------------------


def place(world: d.World, folder: Path) -> None:
    assert world.rank == int(os.environ["RANK"])
    assert (world.size, world.local_rank) == (2, world.rank)
    assert world.device == torch.device("cpu")
    assert world.is_main is (world.rank == 0) is d.is_main_process()
    assert dist.get_backend() == "gloo"


def gathering(world: d.World, folder: Path) -> None:
    """Of every dtype, lengths that differ, and lengths of 0; by rank, in order."""
    for dtype in (torch.float32, torch.float64, torch.int64, torch.bool, torch.bfloat16):
        for lengths in ((3, 5), (5, 3), (0, 2), (0, 0)):
            whole = torch.randn(8, 2, 3, generator=torch.Generator().manual_seed(1)).to(dtype)
            expected = whole[: sum(lengths)].split(lengths)
            mine = expected[world.rank]
            parts = d.all_gather_tensors(mine.mT.contiguous().mT, world)  # not contiguous
            assert [p.dtype for p in parts] == [dtype] * 2
            assert all(torch.equal(p, e) for p, e in zip(parts, expected, strict=True))
    with pytest.raises(ValueError, match=r"rows of one size on every rank, got .* \(8, 12\)"):
        d.all_gather_tensors(torch.zeros(2, 2 + world.rank), world)
    with pytest.raises(ValueError, match="at least one dimension, got a scalar"):
        d.all_gather_tensors(torch.tensor(1.0), world)


def agreeing(world: d.World, folder: Path) -> None:
    assert d.any_true(world.rank == 1, world)
    assert not d.any_true(False, world)
    assert d.all_max([world.rank, -world.rank, 7], world) == [1, 0, 7]
    t = torch.tensor([1.0, 10.0], dtype=torch.float64) * (1 + world.rank)
    assert d.all_sum(t, world).tolist() == [3.0, 30.0]
    assert t.tolist() == [1.0 + world.rank, 10.0 + 10 * world.rank]
    told = {"rank": world.rank, "t": torch.arange(world.rank + 3)}
    got = d.broadcast_object(told, world)
    assert got["rank"] == 0
    assert got["t"].tolist() == [0, 1, 2]


def main_alone(world: d.World, folder: Path) -> None:
    """Its result and its error are everybody's."""
    calls = []

    def function() -> int:
        calls.append(world.rank)
        return 5

    assert d.on_main(function, world) == 5
    assert calls == [0] * world.is_main

    def wrong() -> int:
        raise KeyError("a name")

    with pytest.raises(KeyError, match="a name"):
        d.on_main(wrong, world)


def shares(world: d.World, folder: Path) -> None:
    for count in (0, 1, 2, 7, 8):
        parts = [d.share(count, d.World(r, 3, r, world.device)) for r in range(3)]
        assert parts[0][0] == 0
        assert parts[-1][1] == count
        assert all(a[1] == b[0] for a, b in itertools.pairwise(parts))
        sizes = [stop - start for start, stop in parts]
        assert max(sizes) - min(sizes) <= 1


def waiting(world: d.World, folder: Path) -> None:
    start = time.monotonic()
    if world.is_main:
        time.sleep(0.3)
    d.barrier(world)
    assert time.monotonic() - start >= 0.25


def nested(world: d.World, folder: Path) -> None:
    """A group that is there already is used, and left."""
    with d.join("cpu") as again:
        assert again == world
    assert d.any_true(world.is_main, world)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="a GPU of its own"), d.join("cuda"):
            pass


HELPERS = (place, gathering, agreeing, main_alone, shares, waiting, nested)


# --- one that ends, one that is silent --------------------------------------------------------


def ends(world: d.World, folder: Path) -> None:
    if not world.is_main:
        os._exit(7)
    d.barrier(world)


def sleeps(world: d.World, folder: Path) -> None:
    if not world.is_main:
        time.sleep(60)
    d.barrier(world)


def lost(check: Callable[[d.World, Path], None], folder: Path) -> None:
    """Fails as the check does; how the main process was told of it is kept."""
    try:
        with d.join("cpu") as world:
            check(world, folder)
    except d.DistributedError as error:
        (folder / f"{check.__name__}.txt").write_text(str(error))
        raise


GROUPS = {"helpers": HELPERS}


def run(group: str, folder: Path) -> None:
    results = {}
    with d.join("cpu") as world:
        for check in GROUPS[group]:
            try:
                check(world, folder)
                results[check.__name__] = "ok"
            except BaseException:
                # The other rank may be waiting now, so that nothing after this makes sense.
                results[check.__name__] = traceback.format_exc()
                break
        (folder / f"{group}.{world.rank}.json").write_text(json.dumps(results))
        d.barrier(world)
    assert not dist.is_initialized()


if __name__ == "__main__":
    torch.set_num_threads(1)
    name, where = sys.argv[1], Path(sys.argv[2])
    if name in GROUPS:
        run(name, where)
    else:
        lost({"ends": ends, "sleeps": sleeps}[name], where)
