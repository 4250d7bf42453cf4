"""MKL's functions are called once before threads can call them at the same time."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from forks import Program

from dvae_fast._vector_math import FUNCTIONS

RECORD = """
import json
import torch
from torch.utils._python_dispatch import TorchDispatchMode

class Calls(TorchDispatchMode):
    found = []
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if args and isinstance(args[0], torch.Tensor):
            name = func._schema.name.removeprefix("aten::")
            self.found.append([name, str(args[0].dtype), args[0].device.type])
        return func(*args, **(kwargs or {}))

with Calls() as calls, torch.device("meta"):
    import dvae_fast
print(json.dumps(calls.found))
"""


@pytest.mark.process
def test_importing_the_package_calls_each_function_in_both_precisions() -> None:
    done = Program("-c", RECORD).result()
    assert done.returncode == 0, done.stderr
    found = {tuple(call) for call in json.loads(done.stdout)}
    dtypes = ("torch.float32", "torch.float64")
    expected = {(name, dtype, "cpu") for name in FUNCTIONS for dtype in dtypes}
    assert expected <= found


def test_the_functions_are_those_that_torch_takes_from_mkl() -> None:
    header = Path(torch.__file__).parent / "include" / "ATen" / "cpu" / "vml.h"
    used = re.findall(r"^IMPLEMENT_VML_MKL\((\w+), ", header.read_text(), re.MULTILINE)
    assert set(used) == set(FUNCTIONS)
