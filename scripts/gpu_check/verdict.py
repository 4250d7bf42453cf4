"""verdict.json: what is known so far, whole and valid at every moment."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

PASSED, FAILED, SKIPPED, TIMED_OUT = "passed", "failed", "skipped", "timed out"
RUNNING, KILLED = "running", "killed"

#: what counts against the whole
BAD = (FAILED, TIMED_OUT, KILLED)


@dataclass(frozen=True)
class Verdict:
    """Of one step: its status, a line for people, and more for programs."""

    status: str
    summary: str
    details: dict[str, Any] = field(default_factory=dict)


class Record:
    """The file. A step is in it from its start, so that a kill tells which step it was."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content: dict[str, Any] = {"machine": {}, "steps": [], "targets": []}
        if path.exists():
            self.content = json.loads(path.read_text())
            for step in self.content["steps"]:
                if step["status"] == RUNNING:
                    step.update(status=KILLED, summary="the whole run ended in this step")

    def step(self, name: str) -> dict[str, Any] | None:
        return next((s for s in self.content["steps"] if s["name"] == name), None)

    def begin(self, name: str, limit: float, log: str) -> None:
        """Again, if it has run before: the last time counts."""
        self.content["steps"] = [s for s in self.content["steps"] if s["name"] != name]
        self.content["steps"].append(
            {
                "name": name,
                "status": RUNNING,
                "summary": "",
                "seconds": None,
                "limit": round(limit, 1),
                "started": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()),
                "log": log,
            }
        )
        self.save()

    def end(self, name: str, verdict: Verdict, seconds: float) -> None:
        step = self.step(name)
        assert step is not None
        step.update(status=verdict.status, summary=verdict.summary, seconds=round(seconds, 2))
        if verdict.details:
            step["details"] = verdict.details
        self.save()

    def bad(self) -> list[str]:
        return [s["name"] for s in self.content["steps"] if s["status"] in BAD]

    def save(self) -> None:
        part = self.path.with_name(self.path.name + ".part")
        part.write_text(json.dumps(self.content, indent=2, ensure_ascii=False) + "\n")
        os.replace(part, self.path)
