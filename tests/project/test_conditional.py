"""docs/conditional.py: the table that it writes."""

from __future__ import annotations

import numpy as np
from docs_script import load_script

conditional = load_script("conditional")


def test_the_table_has_paired_differences() -> None:
    """Of 3 seeds: -2, -3 and -4 on average, whose t interval is 4.303 · 1/√3; of one, none."""
    each = np.array([90.0, 94.0])
    found = {
        "given": {s: (92.0 - s, each - s) for s in range(3)},
        "plain": {s: (94.0, each + np.array([1.0, 3.0])) for s in range(3)},
    }
    *_, second, third, all_seeds = conditional.table(found).splitlines()
    assert second == "| 1 | 91.00 | 94.00 | −3.00 ± 1.00 |"
    assert third == "| 2 | 90.00 | 94.00 | −4.00 ± 1.00 |"
    assert all_seeds.startswith("| all | 91.00 | 94.00 | −3.00 ± 2.48, 95 %")
    one = {kind: {0: runs[0]} for kind, runs in found.items()}
    assert conditional.table(one).splitlines()[-1] == "| all | 92.00 | 94.00 | −2.00 |"
