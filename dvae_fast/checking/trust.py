"""Which kernels may run on the GPUs of this process: checked once, by a process, and remembered.

The first use of a GPU asks for `verdict`. It comes from the user's cache, where a report lies for
each kind of GPU, driver, torch and library; where there is none, `dvae_fast.checking` runs in a
process of its own, because a kernel that is wrong may break the context it runs in. Nothing here
touches this process's GPU.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dvae_fast._version import __version__
from dvae_fast.checking.cases import OPERATORS
from dvae_fast.checking.machine import CheckError, Kind, cuda_kinds, driver_version, library_hash
from dvae_fast.checking.process import ended, environment, interpreter, signal_name
from dvae_fast.checking.report import CheckReport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_FORMAT = 1
#: a crash or time-out is tried again after so many seconds
_RETRY = 86_400.0
_SKIP = "DVAE_FAST_CHECK=0 uses the kernels unchecked"


def _worker() -> list[str]:
    return [interpreter(), "-m", "dvae_fast.checking"]


@dataclass
class Backend:
    """The devices that kernels are checked on, and the command that checks them."""

    kinds: Callable[[], list[Kind]] = cuda_kinds
    driver: Callable[[], str] = driver_version
    library: Callable[[], str] = library_hash
    worker: Callable[[], list[str]] = _worker
    #: seconds a check may take, and those spent at most in waiting for another process's
    limit: float = 120.0
    wait: float = 180.0


BACKEND = Backend()


@dataclass(frozen=True)
class Verdict:
    """What may run: every operator but the failed ones, or none."""

    trusted: bool
    failed: tuple[str, ...] = ()
    #: why nothing is trusted
    reason: str = ""
    #: one sentence for the user; "" where all is well and remembered
    warning: str = ""


@dataclass
class Entry:
    """A check that was made, as it is remembered."""

    #: report, crash, timeout, or device: the check could not be made, which says nothing of kernels
    outcome: str
    reason: str = ""
    #: the file with the report or the log
    path: str = ""
    report: CheckReport | None = None
    time: float = field(default_factory=time.time)

    @property
    def fresh(self) -> bool:
        """Whether it stands: for good, or for a day, or for those alone who were waiting."""
        if self.outcome == "device":
            return False
        return self.outcome == "report" or 0 <= time.time() - self.time < _RETRY

    def made_since(self, asked: float) -> bool:
        """Whether it came of a wait that began when `asked`, and holds for who waited too."""
        return 0 <= self.time - asked < BACKEND.wait + BACKEND.limit


def cache_folder() -> Path:
    """$XDG_CACHE_HOME or ~/.cache, dvae_fast/checks. Raises OSError where there is no home."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):  # as the standard has it, a relative one is ignored
        return Path(base) / "dvae_fast" / "checks"
    try:
        return Path.home() / ".cache" / "dvae_fast" / "checks"
    except RuntimeError as error:
        raise OSError(str(error)) from None


def _key(kind: Kind) -> str:
    parts = [
        str(_FORMAT), __version__, BACKEND.library(), kind.name, kind.capability,
        BACKEND.driver(), torch.__version__,
    ]  # fmt: skip
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def verdict() -> Verdict:
    """Which operators may run on every kind of GPU this process sees."""
    failed: set[str] = set()
    reports, notes = [], []
    for kind in BACKEND.kinds():
        entry, note = _obtain(kind)
        if note:
            notes.append(note)
        if entry.report is None:
            log = f"; see {entry.path}" if entry.path else ""
            again = (
                ". While no other process uses the GPU it can be done ahead: dvae-fast check"
                if entry.outcome == "device"
                else ". It is tried again after a day, or at once with: dvae-fast check"
            )
            what = f"the CUDA kernels could not be checked on {kind.name}: {entry.reason}{log}"
            tail = "".join(f". {n}" for n in notes)
            text = f"dvae_fast: {what}. The slower PyTorch reference runs instead{again}{tail}"
            return Verdict(False, (), entry.reason, text)
        if wrong := _not_right(entry.report):
            failed.update(wrong)
            reports.append(f"{kind.name}: {entry.path or 'dvae-fast check shows it'}")
    sentences = []
    if failed:
        sentences.append(
            f"the CUDA kernels of {', '.join(sorted(failed))} failed the check on this machine; "
            f"they run the slower PyTorch reference. Report: {'; '.join(reports)}"
        )
    sentences += notes
    warning = f"dvae_fast: {'. '.join(sentences)}" if sentences else ""
    return Verdict(True, tuple(sorted(failed)), "", warning)


def remembered() -> Verdict | None:
    """The verdict if it can be had without a check."""
    failed: set[str] = set()
    try:
        kinds = BACKEND.kinds()
    except RuntimeError:  # the driver is of no use
        return None
    for kind in kinds:
        try:
            entry = _read(cache_folder() / f"{_key(kind)}.json")
        except OSError:
            return None
        if entry is None or not entry.fresh:
            return None
        if entry.report is None:
            return Verdict(False, (), entry.reason)
        failed.update(_not_right(entry.report))
    return Verdict(True, tuple(sorted(failed)))


def renew(device: str, *, small: bool = False) -> CheckReport:
    """Check `device` now, in a process of its own, and remember what it found.

    Raises:
        CheckError: where the check could not be made.
    """
    p = torch.cuda.get_device_properties(torch.device(device))
    kind = Kind(p.name, f"{p.major}.{p.minor}", device)
    start, key, folder = time.monotonic(), _key(kind), None
    with contextlib.suppress(OSError):
        folder = _writable(cache_folder())
    if folder is None or small:
        with tempfile.TemporaryDirectory(prefix="dvae_fast_check_") as temporary:
            entry = _run(kind, Path(temporary), key, small)
            entry.path = ""
    else:
        entry = _run(kind, folder, key)
        if entry.outcome != "device":
            _remember(folder / f"{key}.json", entry)
    if entry.report is not None:
        return entry.report
    reason = entry.reason + (f"; see {entry.path}" if entry.path else "")
    if entry.outcome == "device":
        raise CheckError(reason)
    return CheckReport(
        machine={"device": device, "name": kind.name, "capability": kind.capability},
        rows=(),
        seconds=time.monotonic() - start,
        small=small,
        incomplete=reason,
        incomplete_kind=entry.outcome,
    )


def _not_right(report: CheckReport) -> set[str]:
    """Operators that failed, or that the check did not reach."""
    reached = {row.operator for row in report.rows if row.what != "gradients"}
    return set(report.failed_operators) | set(OPERATORS) - reached


# --- the cache --------------------------------------------------------------------------------


def _writable(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(1 << 16))  # a full disk takes names, but no bytes
        file.flush()
    return folder


def _obtain(kind: Kind) -> tuple[Entry, str]:
    """The entry for `kind`, remembered or made now, and a note for the user."""
    key, asked = _key(kind), time.time()
    try:
        folder = cache_folder()
        path = folder / f"{key}.json"
        entry = _read(path)
        if entry is not None and entry.fresh:
            return entry, ""
        _writable(folder)
        lock = folder / f"{key}.lock"
        lock.open("ab").close()
    except OSError as error:
        note = (
            f"The check cannot be remembered ({error.strerror or error}"
            f"{f': {error.filename}' if error.filename else ''}) and runs at each start: "
            f"let XDG_CACHE_HOME name a folder that can be written; {_SKIP}"
        )
        with tempfile.TemporaryDirectory(prefix="dvae_fast_check_") as temporary:
            entry = _run(kind, Path(temporary), key)
            entry.path = ""
            return entry, note
    with _locked(lock) as held:
        if held is None:
            reason = f"another process has been at it for more than {BACKEND.wait:g} s"
            return Entry("device", reason), ""
        entry = _read(path)  # whoever held the lock may have made it, or found that it cannot
        if entry is not None and (entry.fresh or entry.made_since(asked)):
            return entry, ""
        entry = _run(kind, folder, key)
        note = _remember(path, entry)
        return entry, "" if entry.outcome == "device" else note


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bool | None]:
    """Holds the lock: True; False where the file system has none; None if it was never free."""
    deadline = time.monotonic() + BACKEND.wait
    with path.open("wb") as file:
        held: bool | None = None
        while held is None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                held = True
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    break
                time.sleep(0.1)
            except OSError:
                held = False
        yield held  # closing the file gives the lock back


def _read(path: Path) -> Entry | None:
    """What is remembered; None where there is nothing, or nothing that can be read."""
    try:
        values = json.loads(path.read_text())
        if values["format"] != _FORMAT:
            return None
        report = values["report"]
        if (values["outcome"] == "report") != (report is not None):
            return None
        return Entry(
            outcome=str(values["outcome"]),
            reason=str(values["reason"]),
            path=str(path) if report is not None else str(values["path"]),
            report=None if report is None else CheckReport.from_dict(report),
            time=float(values["time"]),
        )
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _remember(path: Path, entry: Entry) -> str:
    """Writes it; a note for the user where that fails."""
    from dvae_fast.files import CheckpointError, write_json

    values: dict[str, Any] = {
        "format": _FORMAT,
        "outcome": entry.outcome,
        "reason": entry.reason,
        "path": entry.path,
        "time": entry.time,
        "report": None if entry.report is None else entry.report.to_dict(),
    }
    try:
        write_json(path, values)
    except CheckpointError as error:
        return f"The check cannot be remembered and runs at each start: {error}; {_SKIP}"
    if entry.report is not None:
        entry.path = str(path)
    return ""


# --- the process ------------------------------------------------------------------------------


def _run(kind: Kind, folder: Path, key: str, small: bool = False) -> Entry:
    """One check of `kind`, its log in `folder`; never raises for what the process does."""
    logging.getLogger("dvae_fast").info("checking the kernels on %s, once", kind.name)
    log_path = folder / f"{key}.log"
    try:
        command = [*BACKEND.worker(), "--here", "--device", kind.device]
    except CheckError as error:
        return Entry("device", str(error))
    with tempfile.TemporaryDirectory(prefix="dvae_fast_check_") as temporary:
        out = Path(temporary) / "report.json"
        command += ["--json", str(out), *(["--small"] if small else [])]
        try:
            with log_path.open("wb") as log:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=temporary,
                    env=environment(),
                    start_new_session=True,
                )
                code = ended(process, time.monotonic() + BACKEND.limit)
        except OSError as error:
            return Entry("device", f"no process could be started: {error}")
        return _classify(code, out, log_path, kind)


def _another(report: CheckReport, kind: Kind) -> str:
    """Of what the process saw, what is not as it is here: CUDA_VISIBLE_DEVICES or the path changed
    since, say. The report then is not about this process's kernels."""
    here = {"library": library_hash()}
    if kind.device.startswith("cuda"):
        here["name"] = kind.name
    for what, value in here.items():
        found = report.machine.get(what, value)
        if found != value:
            words = {"library": "compiled library", "name": "GPU"}[what]
            return f"the check's process saw another {words} ({found or 'none'}, not {value})"
    return ""


def _classify(code: int | None, out: Path, log: Path, kind: Kind) -> Entry:
    lines = log.read_text(errors="replace").splitlines()
    at = next((f" in {line[2:]}" for line in reversed(lines) if line.startswith("> ")), "")
    if code is None:
        return Entry("timeout", f"the check took more than {BACKEND.limit:g} s{at}", str(log))
    if code < 0:
        return Entry("crash", f"the check ended with {signal_name(code)}{at}", str(log))
    if code == 2 and not out.exists():
        last = next((line for line in reversed(lines) if line.strip()), "it cannot be made")
        return Entry("device", last.removeprefix("dvae-fast check: "), str(log))
    try:
        report = CheckReport.from_dict(json.loads(out.read_text()))
    except (OSError, ValueError, KeyError, TypeError):
        last = next((line for line in reversed(lines) if line.strip()), "nothing was written")
        outcome = "crash" if at else "device"  # not one kernel ran
        return Entry(outcome, f"the check left no report (exit code {code}): {last}", str(log))
    if other := _another(report, kind):
        return Entry("device", other, str(log))
    if report.incomplete:
        return Entry(report.incomplete_kind, report.incomplete + at, str(log))
    return Entry("report", "", str(out), report)
