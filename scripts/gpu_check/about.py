"""What this Python, its torch and the GPU are, as one line of JSON; imported by nothing."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

MODULES = (
    *("torch", "numpy", "scipy", "sklearn", "safetensors", "matplotlib", "typer", "rich"),
    *("pytest", "xdist", "pytest_benchmark", "setuptools", "ninja", "pybind11"),
)


def said(*command: str) -> str:
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return process.stdout.strip()


def _version(root: Path) -> str:
    text = (root / "dvae_fast" / "_version.py").read_text()
    return text.partition('"')[2].partition('"')[0]


def about(root: Path, device: str) -> dict[str, Any]:
    nvcc = said("nvcc", "--version").splitlines()
    head = os.environ.get("DVAE_FAST_COMMIT") or said("git", "-C", str(root), "rev-parse", "HEAD")
    facts: dict[str, Any] = {
        "device": "CPU",
        "capability": None,
        "driver": said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "python": platform.python_version(),
        "torch": None,
        "cuda": None,
        "nvcc": nvcc[-1] if nvcc else "",
        "dvae_fast": _version(root),
        "commit": head,
        "cores": os.cpu_count(),
        "compute_sanitizer": shutil.which("compute-sanitizer") or "",
        "modules": [m for m in MODULES if importlib.util.find_spec(m) is not None],
        "error": "",
    }
    if "torch" not in facts["modules"]:
        facts["error"] = "torch must be installed, and is not"
        return facts
    import torch

    facts |= {"torch": torch.__version__, "cuda": torch.version.cuda}
    if tuple(int(n) for n in torch.__version__.split(".")[:2]) < (2, 11):
        facts["error"] = f"torch must be 2.11 or newer, got {torch.__version__}"
    elif device == "cuda":
        if not torch.cuda.is_available():
            facts["error"] = f"torch must see a GPU, and {torch.__version__} sees none"
        else:
            facts["device"] = torch.cuda.get_device_name()
            facts["capability"] = list(torch.cuda.get_device_capability())
            facts["device_memory"] = torch.cuda.get_device_properties(0).total_memory
    return facts


if __name__ == "__main__":
    print(json.dumps(about(Path(sys.argv[1]), sys.argv[2])))
