"""Step `library`: kernels of these sources for this device, brought along or built.

In this order: one already in place and known to be of these sources, `prebuilt/_C.abi3.so`, a
build. Each must load, and launch a kernel here.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

from gpu_check.sources import sources_hash
from gpu_check.verdict import FAILED, PASSED, TIMED_OUT, Verdict

if TYPE_CHECKING:
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


def cuda_home(context: Context) -> str:
    """Where nvcc itself says it lives: the one in PATH may be a script that calls it."""
    known = context.env.get("CUDA_HOME", "")
    if known:
        return known
    if os.access("/usr/local/cuda/bin/nvcc", os.X_OK):
        return "/usr/local/cuda"
    outcome = context.run(["nvcc", "--dryrun", "-x", "cu", "/dev/null"], 20)
    top = re.search(r"^#\$ TOP=(.+)$", outcome.output, re.MULTILINE)
    return str(Path(top.group(1)).resolve()) if top else ""


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


def build(context: Context, seconds: float) -> str:
    """In place, for this device alone; what went wrong, or ""."""
    missing = context.missing(NEEDED_TO_BUILD)
    if missing:
        return f"cannot build without {missing}"
    env = {"DVAE_FAST_CUDA": "0"}
    if context.device != "cpu":
        chosen = context.env.get("TORCH_CUDA_ARCH_LIST") or architecture(
            context.machine["capability"]
        )
        home = cuda_home(context)
        if not home:
            return "cannot build without nvcc"
        env = {"DVAE_FAST_CUDA": "1", "TORCH_CUDA_ARCH_LIST": chosen, "CUDA_HOME": home}
        env["PATH"] = f"{home}/bin:{context.env.get('PATH', '')}"
        env["MAX_JOBS"] = str(context.machine.get("cores") or 1)
    command = [context.python, "setup.py", "--quiet", "build_ext", "--inplace"]
    outcome = context.run(command, seconds, env)
    if outcome.status == "passed":
        return ""
    return f"the build: {outcome.ended()}: {outcome.last_lines()}"


def library(context: Context, seconds: float) -> Verdict:
    end = time.monotonic() + seconds
    root = context.root
    refused = []
    if (root / LIBRARY).exists():
        if context.dry_run or stamped(root):
            wrong = probe(context, min(PROBE_SECONDS, seconds))
            if not wrong:
                return Verdict(PASSED, "in place already", {"library": "in place"})
            refused.append(f"{LIBRARY}: {wrong}")
        else:
            refused.append(f"{LIBRARY} may be of other sources")
    wrong = take_prebuilt(context, min(PROBE_SECONDS, end - time.monotonic()))
    how = f"{PREBUILT}, brought along"
    if wrong:
        refused.append(wrong)
        start = time.monotonic()
        left = end - start
        wrong = build(context, left - min(PROBE_SECONDS, 0.2 * left))
        timed_out = time.monotonic() - start >= 0.7 * left and bool(wrong)
        wrong = wrong or probe(context, max(5.0, min(PROBE_SECONDS, end - time.monotonic())))
        how = f"built in {time.monotonic() - start:.0f} s ({'; '.join(refused)})"
        if wrong:
            summary = "; ".join([*refused, wrong])
            return Verdict(TIMED_OUT if timed_out else FAILED, summary, {"refused": refused})
    stamp(root)
    return Verdict(PASSED, how, {"library": how.split(",")[0].split(" in ")[0], "refused": refused})
