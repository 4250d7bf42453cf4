"""The evaluations that a folder keeps: one for each split, method, proposal and k.

``evaluation.json`` is the latest, ``evaluation.npz`` the numbers of its examples; each is also kept
under a name that says what it is of. An evaluation names the digest of its model, and is marked as
old when the folder's model is another.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from dvae_fast.files import CheckpointError, read_json, write_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["EVALUATION", "METRICS", "MODEL_DIGEST", "PICTURES", "evaluation_name", "mark_old"]

METRICS = "metrics.json"
#: what the files of the latest evaluation are called, but for their suffixes
EVALUATION = "evaluation"
#: pictures of an evaluation: ``evaluation_bounds.png``
PICTURES = ("bounds", "ess", "worst")
#: the key of a report that tells which model it is of
MODEL_DIGEST = "model_digest"
_OLD = ".old"


def evaluation_name(report: Mapping[str, Any]) -> str:
    """What an evaluation is kept as: ``evaluation-test-importance-posterior-k5000``.

    Of the first 50 examples only, ``…-first50``: it does not take the place of one of all.
    """
    parts = [EVALUATION, report["split"], report["method"]]
    if "proposal" in report:
        parts.append(report["proposal"])
    parts.append(f"k{report['k'] if 'k' in report else report['chains']}")
    if report.get("limit") is not None:
        parts.append(f"first{report['examples']}")
    return "-".join(parts)


def mark_old(folder: Path, digest: str) -> None:
    """Mark the evaluations in `folder` that are of another model than `digest` tells.

    ``evaluation….json`` becomes ``evaluation….old.json``, and so do its other files; that in
    ``metrics.json`` says so. Never an error: what cannot be marked names its model still.
    """
    for path in folder.glob(f"{EVALUATION}*.json"):
        if path.stem.endswith(_OLD):
            continue
        with contextlib.suppress(CheckpointError, OSError):
            report = read_json(path)
            if not isinstance(report, dict) or report.get(MODEL_DIGEST) == digest:
                continue
            write_json(path.with_suffix(f"{_OLD}.json"), {"old": True, **report})
            path.unlink()
            for name in (f"{path.stem}.npz", *(f"{path.stem}_{p}.png" for p in PICTURES)):
                with contextlib.suppress(FileNotFoundError):
                    file = folder / name
                    file.replace(file.with_suffix(f"{_OLD}{file.suffix}"))
    with contextlib.suppress(CheckpointError, OSError):
        if not (folder / METRICS).exists():
            return
        metrics = read_json(folder / METRICS)
        report = metrics.get("evaluation") if isinstance(metrics, dict) else None
        if not isinstance(report, dict) or report.get("old"):
            return
        if report.get(MODEL_DIGEST) != digest:
            write_json(folder / METRICS, metrics | {"evaluation": {**report, "old": True}})
