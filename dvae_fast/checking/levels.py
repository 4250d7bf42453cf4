"""The other instruction sets of a CPU: a process for each, since a process chooses its own once.

Run as a program it writes the outcomes of the cases at the level that DVAE_FAST_ISA names; the
check that started it decides on them.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dvae_fast.checking.machine import CheckError
from dvae_fast.checking.outcomes import Outcome, run_sample
from dvae_fast.checking.process import ended, environment, interpreter
from dvae_fast.checking.select import samples

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

LEVELS = ("base", "avx2", "avx512", "avx512bf16", "amx")
_REFUSED = "DVAE_FAST_ISA must be one of"


class Level:
    """A process that runs the cases at one level."""

    def __init__(self, name: str, small: bool, operators: Sequence[str], folder: Path) -> None:
        self.name = name
        self._folder, self._operators = folder, tuple(operators)
        command = [interpreter(), "-m", "dvae_fast.checking.levels", f"{name}.pt"]
        with (folder / f"{name}.log").open("wb") as log:
            self._process = subprocess.Popen(
                [*command, str(int(small)), *operators],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=folder,
                env={**environment(), "DVAE_FAST_ISA": name},
                start_new_session=True,
            )

    def outcomes(self, deadline: float) -> dict[str, list[Outcome]] | str | None:
        """Outcomes by operator, None where the machine has no such level, or what went wrong.

        An operator that is missing was not reached: one before it ended the process.
        """
        code = ended(self._process, deadline)
        log = (self._folder / f"{self.name}.log").read_text(errors="replace")
        if _REFUSED in log:
            return None
        if code == 0:
            loaded: dict[str, list[Outcome]] = torch.load(self._folder / f"{self.name}.pt")
            return loaded
        started = [line[2:] for line in log.splitlines() if line.startswith("> ")]
        how = "did not end in time" if code is None else f"ended with {code}"
        at = started[-1] if started else "the start"
        return f"{at}: its process {how}"

    def stop(self) -> None:
        ended(self._process, time.monotonic())


def start_levels(
    names: Iterable[str], small: bool, operators: Sequence[str], folder: str
) -> list[Level]:
    """Raises CheckError if no process can be started."""
    started: list[Level] = []
    try:
        for name in names:
            started.append(Level(name, small, operators, Path(folder)))
    except OSError as error:
        for level in started:
            level.stop()
        raise CheckError(f"no process could be started: {error}") from None
    return started


def _write(path: str, small: bool, operators: list[str]) -> None:
    from dvae_fast import _C  # noqa: F401

    torch.set_num_threads(1)
    found: dict[str, list[Outcome]] = {}
    for sample in samples("cpu", small=small, operators=operators):
        if sample.op not in found:
            print("> " + sample.op, file=sys.stderr, flush=True)
        outcome = run_sample(sample, sample.args())
        if isinstance(outcome, str) and _REFUSED in outcome:
            raise SystemExit(outcome)
        found.setdefault(sample.op, []).append(outcome)
    torch.save(found, path)


if __name__ == "__main__":
    _write(sys.argv[1], sys.argv[2] == "1", sys.argv[3:])
