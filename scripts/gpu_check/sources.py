"""A hash of csrc, by which a library built elsewhere is known to be of these sources.

python scripts/gpu_check/sources.py prints it: SHA-256 over every file of csrc in the order of their
paths, each as path, NUL, contents, NUL. SOURCES.sha256 beside a library holds it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def sources_hash(root: Path = ROOT) -> str:
    total = hashlib.sha256()
    folder = root / "csrc"
    files = {p.relative_to(root).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    for name in sorted(files):
        total.update(name.encode() + b"\0" + files[name].read_bytes() + b"\0")
    return total.hexdigest()


if __name__ == "__main__":
    print(sources_hash())
