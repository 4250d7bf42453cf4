"""scripts/count_instructions.py: what it takes for a loop, and how it counts."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]

# A loop of two elements with a way out of line, inside another; code that cannot be reached.
SASS = """
        Function : kernel
        /*0000*/                   S2R R0, SR_TID.X ;                 /* 0x0000000000007919 */
                                                                       /* 0x000e240000002100 */
        /*0010*/                   IMAD.MOV.U32 R1, RZ, RZ, RZ ;      /* 0x1 */
        /*0020*/                   LDG.E.128 R4, desc[UR4][R2.64] ;   /* 0x1 */
        /*0030*/                   MUFU.EX2 R5, R4 ;                  /* 0x1 */
        /*0040*/              @!P0 BRA 0xd0 ;                         /* 0x1 */
        /*0050*/                   MUFU.EX2 R6, R5 ;                  /* 0x1 */
        /*0060*/                   FFMA R7, R6, R5, 1 ;               /* 0x1 */
        /*0070*/                   BRA.DIV UR4, 0x110 ;               /* 0x1 */
        /*0080*/               @P1 BRA 0x20 ;                         /* 0x1 */
        /*0090*/                   STG.E desc[UR4][R2.64], R7 ;       /* 0x1 */
        /*00a0*/               @P2 BRA 0x10 ;                         /* 0x1 */
        /*00b0*/                   EXIT ;                             /* 0x1 */
        /*00c0*/                   BRA 0xc0;                          /* 0x1 */
        /*00d0*/                   F2FP.BF16.F32.PACK_AB R6, R5, R4 ; /* 0x1 */
        /*00e0*/                   LOP3.LUT R6, R6, 0x1, RZ, 0xc0 ;   /* 0x1 */
        /*00f0*/                   BRA 0x50 ;                         /* 0x1 */
        /*0100*/                   NOP ;                              /* 0x1 */
        /*0110*/                   SHFL.BFLY PT, R5, R6, 0x10, 0x1f ; /* 0x1 */
        /*0120*/                   BRA 0x80 ;                         /* 0x1 */
"""


@pytest.fixture(scope="module")
def counter() -> ModuleType:
    path = ROOT / "scripts/count_instructions.py"
    spec = importlib.util.spec_from_file_location("count_instructions", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look it up
    spec.loader.exec_module(module)
    return module


def test_the_inner_loop_with_its_way_out_of_line(counter: ModuleType) -> None:
    code = counter.parse(SASS)["kernel"]
    assert len(code) == 19
    found = counter.loops(code)
    assert len(found) == 1
    addresses = sorted(code[n].address for block in found[0] for n in block)
    assert addresses == [*range(0x20, 0x90, 0x10), 0xD0, 0xE0, 0xF0]


def test_counts_are_an_element(counter: ModuleType) -> None:
    code = counter.parse(SASS)["kernel"]
    count = counter.count(code, counter.HotLoop("loop", "file", "kernel"))
    assert count["all"] == 10 / 2
    kinds = {"float": 1, "special": 2, "integer": 1, "convert": 1, "memory": 1, "other": 4}
    assert {k: v * 2 for k, v in count.items() if k != "all" and v} == kinds
    half = counter.count(code, counter.HotLoop("loop", "file", "kernel", elements=4, skips="F2FP"))
    assert half["all"] == 7 / 8
    assert counter.count(code, counter.HotLoop("loop", "file", "kernel", marker="MUFU.RCP")) is None
    assert counter.count(code, counter.HotLoop("loop", "file", "kernel", needs="STS")) is None


@pytest.mark.parametrize(
    ("opcode", "kind"),
    [
        ("IMAD.MOV.U32", "other"),
        ("IMAD.WIDE.U32", "integer"),
        ("IMNMX", "select"),
        ("FSET.BF.GT.AND", "select"),
        ("FSETP.NEU.AND", "select"),
        ("VIMNMX.U32", "select"),
        ("HADD2.F32", "convert"),
        ("HFMA2.MMA", "float"),
        ("I2FP.F32.U32", "convert"),
        ("F2FP.BF16.F32.PACK_AB", "convert"),
        ("SHF.R.U32.HI", "integer"),
        ("SHFL.BFLY", "other"),
        ("ULDC.64", "memory"),
        ("STG.E.128", "memory"),
        ("MUFU.EX2", "special"),
        ("BSSY", "other"),
    ],
)
def test_kinds(counter: ModuleType, opcode: str, kind: str) -> None:
    assert counter.kind(opcode) == kind


def test_the_committed_table_has_every_loop(counter: ModuleType) -> None:
    page = (ROOT / "docs/instructions.md").read_text()
    table = counter.read_table(page)
    assert list(table) == [loop.name for loop in counter.LOOPS]
    for before, now, *kinds in table.values():
        assert float(now) <= float(before)
        assert sum(map(float, kinds)) == pytest.approx(float(now), abs=0.4)
    counts = {
        name: dict(zip(("all", *counter.KINDS), map(float, cells[1:]), strict=True))
        for name, cells in table.items()
    }
    assert counter.write_table(counts, {n: c[0] for n, c in table.items()}) in page
