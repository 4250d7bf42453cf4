"""What every benchmark shares: threads, seeds, turns, and what is written beside each time.

A `Case` is one row of the table: its inputs, and for every rival the call that is timed. Rivals
of a case run in turns, each turn in another order, so that a machine that slows down or speeds
up meanwhile favours none of them; `report.py` takes the median over all rounds of all turns.
Every rival's result is checked before it is timed.
"""

from __future__ import annotations

import gc
import os
import platform
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import rivals
import torch

import dvae_fast
from dvae_fast import ops

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass
class Rival:
    """One way to do a case's work.

    `call` is what is timed; it drops its results, so that freeing them is part of the time for
    everybody. `prepare` runs before each call, untimed. `result` is the same work with the
    results kept, for `Case.check`.
    """

    call: Callable[[], object]
    result: Callable[[], Any]
    prepare: Callable[[], None] | None = None
    variant: str = ""
    threads: int = THREADS
    #: the case whose work this is, where the sizes of one group are its rivals
    case: Case | None = None
    #: what the table of such a group needs: operator, axis, value, …
    extra: dict[str, Any] = field(default_factory=dict)


class Case:
    """Inputs and rivals of one group. `elements`, `bytes` and `flops` are the work of one call."""

    group = ""
    elements = 0
    bytes = 0
    flops = 0

    def build(self, rival: str) -> Rival:
        """The rival called `rival`, tuned and compiled."""
        raise NotImplementedError

    def check(self, rival: str, result: Any) -> None:
        """Fail if `result` is not what the case asks for."""
        raise NotImplementedError


class Measure:
    """Holds the current case and its rivals over its turns, and times them."""

    def __init__(self, seconds: float, ahead: Path | None) -> None:
        self.seconds, self.ahead = seconds, ahead
        self.key: object = None
        self.case: Case | None = None
        self.rivals: dict[str, Rival] = {}

    def __call__(self, benchmark: Any, make: Callable[[], Case], key: object, name: str) -> None:
        if self.ahead is not None:
            try:
                (self.ahead / f"{key}, {name}").touch(exist_ok=False)
            except FileExistsError:
                pytest.skip("another process compiles it")
        if key != self.key:
            self.case, self.rivals, self.key = None, {}, None
            torch._dynamo.reset()
            gc.collect()
            torch.manual_seed(0)
            self.case, self.key = make(), key  # a case that is skipped is skipped for each rival
        case = self.case
        assert case is not None
        if name not in self.rivals:
            torch.manual_seed(1)
            torch.set_num_threads(THREADS)
            rival = case.build(name)
            if self.ahead is not None:  # compiled by one call; checked before it is timed
                benchmark.pedantic(rival.call, setup=rival.prepare)
                return
            if rival.prepare is not None:
                rival.prepare()
            case.check(name, rival.result())
            self.rivals[name] = rival
        rival = self.rivals[name]
        torch.set_num_threads(rival.threads)
        benchmark.group = case.group
        work = rival.case or case
        benchmark.extra_info.update(
            rival=name,
            variant=rival.variant,
            elements=work.elements,
            bytes=work.bytes,
            flops=work.flops,
            threads=torch.get_num_threads(),
            **rival.extra,
        )
        rounds, iterations = self._plan(rival)
        # Warm again after the other rivals have had the caches and the allocator.
        benchmark.pedantic(
            rival.call,
            setup=rival.prepare,
            rounds=rounds,
            iterations=iterations,
            warmup_rounds=max(2, rounds // 10),
        )

    def _plan(self, rival: Rival) -> tuple[int, int]:
        """Rounds, and calls in each, to fill the time of one turn."""
        times, spent = [], time.perf_counter()
        while len(times) < 3 or (len(times) < 50 and time.perf_counter() - spent < 0.02):
            if rival.prepare is not None:
                rival.prepare()
            start = time.perf_counter()
            rival.call()
            times.append(time.perf_counter() - start)
        each = statistics.median(times)
        # Short calls in groups of 1 ms, far above the clock's resolution; never with a prepare.
        iterations = 1 if rival.prepare is not None else max(1, int(1e-3 / each))
        return max(5, min(500, int(self.seconds / (each * iterations)))), iterations


@pytest.fixture(scope="session")
def measure(request: pytest.FixtureRequest) -> Iterator[Measure]:
    torch.set_num_threads(THREADS)
    # One function is compiled for every size and formula; past its limit dynamo gives up.
    torch._dynamo.config.recompile_limit = 64
    rivals.choosing_seconds = request.config.getoption("--choose")
    yield Measure(request.config.getoption("--seconds"), request.config.getoption("--ahead"))
    torch._dynamo.reset()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("dvae_fast")
    group.addoption("--turns", type=int, default=3, help="times each rival gets its turn")
    group.addoption("--seconds", type=float, default=0.4, help="timed seconds a rival and turn")
    group.addoption(
        "--choose",
        type=float,
        default=0.4,
        help="seconds for each way to write plain code, to find the fastest; 0 takes the first",
    )
    group.addoption(
        "--load",
        type=float,
        default=os.getloadavg()[0],
        help="load average before the run, where this is not its beginning",
    )
    group.addoption(
        "--ahead",
        type=Path,
        metavar="FOLDER",
        help="only compile, each case where no other process with the same folder was before",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "turn" in metafunc.fixturenames:
        metafunc.parametrize("turn", range(metafunc.config.getoption("--turns")))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Group by group, in each turn by turn, and in each the rivals in a rotated order."""
    if config.getoption("--ahead") is not None:
        items[:] = filter(_compiles, items)
    groups: dict[object, int] = {}
    rivals: dict[object, list[str]] = {}

    def key(item: Any) -> tuple[object, ...]:
        params = item.callspec.params
        rest = sorted((k, v) for k, v in params.items() if k not in ("turn", "rival"))
        return (item.originalname, *rest)

    for item in items:
        params = item.callspec.params  # type: ignore[attr-defined]
        groups.setdefault(key(item), len(groups))
        names = rivals.setdefault(key(item), [])
        if params["rival"] not in names:
            names.append(params["rival"])

    def order(item: Any) -> tuple[int, int, int]:
        names, turn = rivals[key(item)], item.callspec.params["turn"]
        place = (names.index(item.callspec.params["rival"]) - turn) % len(names)
        return groups[key(item)], turn, place

    items.sort(key=order)


def _compiles(item: Any) -> bool:
    return "compile" in item.callspec.params["rival"]


# --- the machine ----------------------------------------------------------------------------------


def _cpu() -> dict[str, Any]:
    """Model and instruction sets of the CPU, and its caches, as the kernel tells them."""
    out: dict[str, Any] = {"model": platform.processor() or platform.machine(), "isa": []}
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            name, _, value = (part.strip() for part in line.partition(":"))
            if name == "model name":
                out["model"] = value
            elif name in ("flags", "Features"):
                known = ("sse4_2", "avx2", "fma", "f16c", "asimd", "sve", "amx_tile")
                out["isa"] = [f for f in value.split() if f in known or f.startswith("avx512")]
                break
    out["caches"] = caches()
    return out


def caches() -> dict[str, int]:
    """Bytes of each cache of the first CPU, by name: one instance, not the sum over cores."""
    out = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            level, kind, size = (
                (index / name).read_text().strip() for name in ("level", "type", "size")
            )
        except OSError:
            continue
        if kind != "Instruction":
            out[f"L{level}{'d' if kind == 'Data' and level == '1' else ''}"] = (
                int(size.rstrip("KM")) * {"K": 1 << 10, "M": 1 << 20}[size[-1]]
            )
    return out


def _build_info() -> Any:
    """What dvae_fast says of itself, where it does."""
    build_info = getattr(dvae_fast, "build_info", None)
    return build_info() if build_info is not None else {}


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: Any) -> None:
    machine_info["dvae_fast"] = {
        "version": dvae_fast.__version__,
        "compiled": ops.library_loaded(),
        "build": {k: str(v) for k, v in dict(_build_info()).items()},
    }
    machine_info["measured_with"] = {
        "torch": torch.__version__,
        "threads": THREADS,
        "cpu": _cpu(),
        "load_average": config.getoption("--load"),
        "turns": config.getoption("--turns"),
        "seconds": config.getoption("--seconds"),
        "malloc": {k: v for k, v in os.environ.items() if k.startswith(("MALLOC_", "LD_PRELOAD"))},
    }
