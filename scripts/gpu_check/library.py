"""Step `library`: kernels of these sources for this device, brought along or built.

In this order: one already in place and known to be of these sources, `prebuilt/_C.abi3.so`, a
build. Each must load, and launch a kernel here.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from typing import TYPE_CHECKING

from gpu_check.sources import sources_hash
from gpu_check.verdict import FAILED, PASSED, Verdict

if TYPE_CHECKING:
    from pathlib import Path

    from gpu_check.steps import Context

LIBRARY = "dvae_fast/_C.abi3.so"
PREBUILT, PREBUILT_HASH = "prebuilt/_C.abi3.so", "prebuilt/SOURCES.sha256"
#: beside the build, which library of which sources was last put in place
STAMP = "build/gpu_check_library.json"

NEEDED_TO_BUILD = ("setuptools", "ninja", "pybind11", "numpy")

#: seconds kept of the step's, for the probe of what is built
PROBE_SECONDS = 30.0


def architecture(capability: list[int]) -> str:
    """As TORCH_CUDA_ARCH_LIST names it; Hopper's own instructions are in 9.0a alone."""
    major, minor = capability
    return f"{major}.{minor}" + ("a" if (major, minor) == (9, 0) else "")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def stamp(root: Path) -> None:
    """Remember that the library in place is of these sources."""
    path = root / STAMP
    path.parent.mkdir(exist_ok=True)
    content = {"sources": sources_hash(root), "library": _digest(root / LIBRARY)}
    path.write_text(json.dumps(content) + "\n")


def stamped(root: Path) -> bool:
    try:
        content = json.loads((root / STAMP).read_text())
        return content == {"sources": sources_hash(root), "library": _digest(root / LIBRARY)}
    except (OSError, ValueError):
        return False


def probe(context: Context, seconds: float = PROBE_SECONDS) -> str:
    """What is wrong with the library in place; "" if nothing is."""
    command = [context.python, "scripts/gpu_check/probe.py", context.device]
    outcome = context.run(command, seconds)
    if outcome.status == "passed":
        return ""
    if outcome.timed_out:
        return f"its kernel had not run after {outcome.seconds:.0f} s"
    return outcome.last_lines() or outcome.ended()


def take_prebuilt(context: Context, seconds: float) -> str:
    """Put it in place; why not, if it does not fit, with what was there before back again."""
    root = context.root
    brought, there = root / PREBUILT, root / LIBRARY
    if not brought.exists():
        return f"no {PREBUILT}"
    try:
        hashed = (root / PREBUILT_HASH).read_text().split()[:1]
    except OSError:
        return f"no {PREBUILT_HASH} says what {PREBUILT} is made of"
    if hashed != [sources_hash(root)]:
        return f"{PREBUILT} is of other sources than csrc"
    before = root / "build" / "library_before"
    before.parent.mkdir(exist_ok=True)
    before.unlink(missing_ok=True)
    if there.exists():
        os.replace(there, before)
    # A file of its own, never written over: another process may have the old one mapped.
    shutil.copyfile(brought, there)
    wrong = probe(context, seconds)
    if wrong:
        there.unlink()
        if before.exists():
            os.replace(before, there)
        return f"{PREBUILT}: {wrong}"
    before.unlink(missing_ok=True)
    return ""


def build(context: Context, seconds: float) -> Verdict:
    """In place, for this device alone."""
    missing = context.missing(NEEDED_TO_BUILD)
    if missing:
        return Verdict(FAILED, f"cannot build without {missing}")
    env = {"DVAE_FAST_CUDA": "0"}
    if context.device != "cpu":
        chosen = context.env.get("TORCH_CUDA_ARCH_LIST")
        env = {
            "DVAE_FAST_CUDA": "1",
            "TORCH_CUDA_ARCH_LIST": chosen or architecture(context.machine["capability"]),
            "MAX_JOBS": str(context.machine["cores"]),
        }
    command = [context.python, "setup.py", "--quiet", "build_ext", "--inplace"]
    outcome = context.run(command, seconds, env)
    if outcome.status != PASSED:
        return Verdict(outcome.status, f"the build: {outcome.ended()}: {outcome.last_lines()}")
    return Verdict(PASSED, f"built in {outcome.seconds:.0f} s")


def library(context: Context, seconds: float) -> Verdict:
    end = time.monotonic() + seconds
    refused = []
    if (context.root / LIBRARY).exists():
        if context.dry_run or stamped(context.root):
            wrong = probe(context, min(PROBE_SECONDS, seconds))
            if not wrong:
                return Verdict(PASSED, "in place already")
            refused.append(f"{LIBRARY}: {wrong}")
        else:
            refused.append(f"{LIBRARY} may be of other sources")
    wrong = take_prebuilt(context, min(PROBE_SECONDS, end - time.monotonic()))
    if not wrong:
        stamp(context.root)
        return Verdict(PASSED, f"{PREBUILT}, brought along", {"refused": refused})
    refused.append(wrong)
    left = end - time.monotonic()
    built = build(context, left - min(PROBE_SECONDS, 0.2 * left))
    if built.status != PASSED:
        return Verdict(built.status, "; ".join([*refused, built.summary]))
    wrong = probe(context, max(5.0, min(PROBE_SECONDS, end - time.monotonic())))
    if wrong:
        return Verdict(FAILED, "; ".join([*refused, f"{built.summary}, and {wrong}"]))
    stamp(context.root)
    return Verdict(PASSED, f"{built.summary} ({'; '.join(refused)})", {"refused": refused})
