"""How every benchmark is timed: threads, seeds, turns, and what is written beside each time.

Rivals of a case run in turns, each turn in another order, so that a machine that slows down or
speeds up meanwhile favours none of them; `report.py` takes the median over all rounds of all turns.
Every rival's result is checked before it is timed, and dropped in the timed call, so that freeing
it is part of the time for everybody.
"""

from __future__ import annotations

import gc
import os
import timeit
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import rivals
import torch
from cases import THREADS, Case, Rival, caches

import dvae_fast
from dvae_fast import ops

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from cases import Measure


class Timer:
    """Holds the current case and its rivals over its turns, and times them."""

    def __init__(self, seconds: float, ahead: Path | None) -> None:
        self.seconds, self.ahead = seconds, ahead
        self.key: object = None
        self.case = Case()
        self.rivals: dict[str, Rival] = {}

    def __call__(self, benchmark: Any, key: object, name: str, make: Callable[[], Case]) -> None:
        if self.ahead is not None:
            try:
                (self.ahead / f"{key}, {name}").touch(exist_ok=False)
            except FileExistsError:
                pytest.skip("another process compiles it")
        if key != self.key:
            self.case, self.rivals, self.key = Case(), {}, None
            torch._dynamo.reset()
            gc.collect()
            torch.manual_seed(0)
            self.case, self.key = make(), key  # a case that is skipped is skipped for each rival
        if name not in self.rivals:
            torch.manual_seed(1)
            torch.set_num_threads(THREADS)
            rival = self.case.build(name)
            if self.ahead is not None:  # compiled by one call; checked before it is timed
                benchmark.pedantic(rival.call, setup=rival.prepare)
                return
            self.case.verify(name, rival)
            self.rivals[name] = rival
        rival = self.rivals[name]
        torch.set_num_threads(rival.threads)
        benchmark.group = self.case.group
        work = rival.case or self.case
        size = {name: getattr(work, name) for name in ("elements", "bytes", "flops")}
        about = {"rival": name, "variant": rival.variant, "threads": rival.threads}
        benchmark.extra_info.update(size | about | rival.extra)

        def call() -> None:
            rival.call()

        if rival.prepare is None:  # short calls in groups: --benchmark-min-time
            benchmark(call)
            return
        once = min(timeit.repeat(call, rival.prepare, number=1, repeat=3))
        rounds = max(5, min(500, int(self.seconds / once)))
        benchmark.pedantic(call, setup=rival.prepare, rounds=rounds, warmup_rounds=rounds // 10)


@pytest.fixture(scope="session")
def timer(request: pytest.FixtureRequest) -> Iterator[Timer]:
    option = request.config.getoption
    torch.set_num_threads(THREADS)
    # One function is compiled for every size and formula; past its limit dynamo gives up.
    torch._dynamo.config.recompile_limit = 64
    rivals.choosing_seconds = option("--choose")
    if option("--ahead") is not None:
        rivals.FIRST_ROUNDS = rivals.LAST_ROUNDS = 1
    yield Timer(float(option("--benchmark-max-time")), option("--ahead"))
    torch._dynamo.reset()


@pytest.fixture
def measure(
    request: pytest.FixtureRequest, benchmark: Any, timer: Timer, rival: str, turn: int
) -> Measure:
    def timed(table: Mapping[str, Callable[[], Case]], case: str) -> None:
        timer(benchmark, _case_of(request.node), rival, table[case])

    return timed


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("dvae_fast")
    for name, kind, default, text in (
        ("turns", int, 3, "times each rival gets its turn"),
        ("choose", float, 0.15, "seconds for each way to write plain code; 0 takes the first"),
        ("load", float, os.getloadavg()[0], "load average when the whole run began"),
        ("ahead", Path, None, "only compile what no other process with the same folder has"),
    ):
        group.addoption(f"--{name}", type=kind, default=default, help=text)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "turn" in metafunc.fixturenames:
        metafunc.parametrize("turn", range(metafunc.config.getoption("--turns")))


def _case_of(item: Any) -> tuple[str, str]:
    """What all rivals and turns of one case have in common."""
    return item.originalname, item.callspec.params["case"]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Case by case, in each turn by turn, and in each the rivals in a rotated order."""
    if config.getoption("--ahead") is not None:
        items[:] = [item for item in items if "compile" in item.callspec.params["rival"]]
    names: dict[tuple[str, str], dict[str, None]] = {}  # of the rivals of each case, in order
    for item in items:
        names.setdefault(_case_of(item), {})[item.callspec.params["rival"]] = None
    cases = {case: (i, list(found)) for i, (case, found) in enumerate(names.items())}

    def order(item: Any) -> tuple[int, int, int]:
        (case, found), turn = cases[_case_of(item)], item.callspec.params["turn"]
        return case, turn, (found.index(item.callspec.params["rival"]) - turn) % len(found)

    items.sort(key=order)


# --- the machine ----------------------------------------------------------------------------------

OTHERS = ("pythae", "pyro-ppl")
ISA = ("sse4_2", "avx2", "fma", "f16c", "asimd", "sve", "amx_tile")


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: Any) -> None:
    cpu = machine_info["cpu"]
    machine_info["dvae_fast"] = {
        "version": dvae_fast.__version__,
        "compiled": ops.library_loaded(),
        "build": {k: str(v) for k, v in dvae_fast.build_info().items()},
    }
    machine_info["measured_with"] = {
        "torch": torch.__version__,
        "others": {d.name: d.version for d in metadata.distributions() if d.name in OTHERS},
        "threads": THREADS,
        "cpu": {
            "model": cpu.get("brand_raw", machine_info["machine"]),
            "isa": [f for f in cpu.get("flags", ()) if f in ISA or f.startswith("avx512")],
            "caches": caches(),
        },
        "load_average": config.getoption("--load"),
        "turns": config.getoption("--turns"),
        "seconds": float(config.getoption("--benchmark-max-time")),
        "malloc": {k: v for k, v in os.environ.items() if k.startswith(("MALLOC_", "LD_PRELOAD"))},
    }
