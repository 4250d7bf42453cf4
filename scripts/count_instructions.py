"""Count the instructions an element takes in the hot loops of the CUDA kernels.

Compiles the kernels, disassembles them with cuobjdump, finds each hot loop in the control flow
graph and divides its instructions by the elements that one pass through it handles (counted by an
instruction that every element has a fixed number of). These are counts of compiled code, which say
what a kernel asks of the chip, not how long it takes.

    python scripts/count_instructions.py                       # print the table
    python scripts/count_instructions.py --update docs/instructions.md
    python scripts/count_instructions.py --check docs/instructions.md
    python scripts/count_instructions.py --objects build/temp  # of a build, nothing is compiled

Needs nvcc, and cuobjdump and nvdisasm: in PATH, beside nvcc, or from one of the wheels triton or
nvidia-cuda-cuobjdump with nvidia-cuda-nvdisasm. Where one is missing it says so and ends with 0.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ARCH = "sm_90a"
#: Another choice of registers by another compiler moves a count a little.
TOLERANCE = 0.02


@dataclass(frozen=True)
class HotLoop:
    """The innermost loop of `kernel` (a pattern of its demangled name) with the most `marker`s.

    Each `marker` stands for `elements` elements; the loop also has `needs`. Branches over blocks
    with `skips` are taken: what is read once for many passes. `source` is a file's name, or what
    instantiate.cu is compiled for.
    """

    name: str
    source: str
    kernel: str
    marker: str = "MUFU.EX2"
    elements: float = 1
    needs: str = ""
    skips: str = ""


def _kernel(name: str, *arguments: str) -> str:
    return rf"\b{name}<" + ", ".join(arguments) + ">"


def _log_weights(dtype: str) -> str:
    common = r"dvae::\w+::Bernoulli", dtype, r"\(.*ScaleKind\)0", "false", "true"
    return _kernel("log_weights_kernel", *common, "8", "4", "1", "false")


def _iwae(dtype: str) -> str:
    common = r"dvae::\w+::Bernoulli", dtype, r"\(.*ScaleKind\)0", "true", "false"
    return _kernel("iwae_kernel", *common)


def _backward(dtype: str) -> str:
    common = r"dvae::\w+::Bernoulli", dtype, r"\(.*ScaleKind\)0", "false", "true", "false"
    return _kernel("log_weights_backward_kernel", *common)


def _corrupt(corruption: str) -> str:
    return _kernel("corrupt_kernel", rf"dvae::\w+::{corruption}", "float", "4", "false")


def _latent(dtype: str) -> str:
    return _kernel("latent_kernel", dtype, "true", "32")


BFLOAT16, HALF = r"dvae::\w+::BFloat16", r"dvae::\w+::Half"
LOOPS = (
    HotLoop("log_weights, Bernoulli, float32", "LogWeightsOf<Bernoulli>", _log_weights("float")),
    HotLoop("log_weights, Bernoulli, bfloat16", "LogWeightsOf<Bernoulli>", _log_weights(BFLOAT16)),
    HotLoop("log_weights, Bernoulli, float16", "LogWeightsOf<Bernoulli>", _log_weights(HALF)),
    HotLoop(
        "log_weights_backward, Bernoulli, float32",
        "LogWeightsBackwardOf<Bernoulli>",
        _backward("float"),
    ),
    HotLoop(
        "log_weights_backward, Bernoulli, bfloat16",
        "LogWeightsBackwardOf<Bernoulli>",
        _backward(BFLOAT16),
    ),
    HotLoop("iwae_loss, density, float32", "IwaeOf<Bernoulli>", _iwae("float"), needs="LDG"),
    HotLoop(
        "iwae_loss, gradient, float32", "IwaeOf<Bernoulli>", _iwae("float"), "STG.E.128", 4, "LDS"
    ),
    HotLoop("iwae_loss, density, bfloat16", "IwaeOf<Bernoulli>", _iwae(BFLOAT16), needs="STS"),
    HotLoop("iwae_loss, gradient, bfloat16", "IwaeOf<Bernoulli>", _iwae(BFLOAT16), needs="STG"),
    HotLoop(
        "corrupt, salt and pepper, float32", "corrupt", _corrupt("SaltAndPepper"), "STG.E.128", 4
    ),
    HotLoop("corrupt, Gaussian, float32", "corrupt", _corrupt("AdditiveGaussian"), "STG.E.128", 4),
    HotLoop("sample_latent, float32", "latent", _latent("float"), "STG", skips="LDG"),
    HotLoop("sample_latent with its mean and log_var, float32", "latent", _latent("float"), "STG"),
    HotLoop("sample_latent, bfloat16", "latent", _latent(BFLOAT16), "STG", skips="LDG"),
    HotLoop(
        "sample_latent_backward, float32",
        "latent_backward",
        _kernel("latent_backward_kernel", "float", ".*LatentParams", r".*SampledRow<float>\s*"),
        "LDG",
        4 / 5,  # of four elements, and of their sample
        "MUFU",
    ),
)

KINDS = ("float", "special", "integer", "select", "convert", "memory", "other")
#: The first names that match an opcode decide.
_KIND = {
    "other": r"IMAD\.MOV|UMOV|MOV|SHFL",
    "convert": r"HADD2\.F32|F2|I2|FRND",
    "select": r"[FHI](SET|SETP|SEL|MNMX|CHK)|HSET2|HMNMX2|VIMNMX|U?I?SEL|U?PLOP3|UISETP",
    "float": r"[FD](ADD|MUL|FMA)|H(ADD2|MUL2|FMA2)",
    "special": r"MUFU",
    "integer": r"U?(IADD|IMAD|LOP3|SHF|LEA|PRMT)|VIADD|IABS|IMUL|BREV|FLO|POPC",
    "memory": r"LD|ST|ATOM|RED|ULDC",
}


def kind(opcode: str) -> str:
    """Which column of the table an instruction counts in."""
    return next((name for name in _KIND if re.match(_KIND[name], opcode)), "other")


@dataclass(frozen=True)
class Instruction:
    address: int
    predicate: str
    opcode: str
    operands: str


_LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+\s+)?([A-Z][\w.]*)\s*([^;]*);")


def parse(sass: str) -> dict[str, list[Instruction]]:
    """The functions of cuobjdump's output, by mangled name."""
    functions: dict[str, list[Instruction]] = {}
    current: list[Instruction] = []
    for line in sass.splitlines():
        if "Function :" in line:
            current = functions.setdefault(line.split("Function :")[1].strip(), [])
        elif match := _LINE.search(line):
            address, predicate, opcode, operands = match.groups()
            current.append(
                Instruction(int(address, 16), (predicate or "").strip(), opcode, operands.strip())
            )
    return functions


def _targets(code: list[Instruction]) -> list[list[int]]:
    """Which instructions may follow each one, by index."""
    index = {i.address: n for n, i in enumerate(code)}
    follow: list[list[int]] = []
    for n, i in enumerate(code):
        after = [n + 1] if n + 1 < len(code) else []
        always = i.predicate in ("", "@PT")
        name = i.opcode.split(".")[0]
        if name == "BRA":
            found = re.search(r"0x([0-9a-f]+)", i.operands)
            # `BRA P0, 0x10` has a condition of its own. BRA.DIV is for warps that have diverged.
            bare = always and re.match(r"`?\(?0x|`", i.operands) is not None
            to = [index[int(found[1], 16)]] if found and int(found[1], 16) in index else []
            follow.append(to if bare else after if ".DIV" in i.opcode else to + after)
        elif name in ("EXIT", "RET", "BRX", "JMP", "JMX") and always:
            follow.append([])
        else:
            follow.append(after)
    return follow


def loops(code: list[Instruction]) -> list[list[list[int]]]:
    """The natural loops without a loop inside: blocks of indices into `code`."""
    follow = _targets(code)
    # Blocks: dominators of single instructions would take a while.
    leaders = {0} | {t for f in follow if len(f) != 1 for t in f}
    leaders |= {f[0] for n, f in enumerate(follow) if len(f) == 1 and f[0] != n + 1}
    starts = sorted(leaders)
    ends = [*starts[1:], len(code)]
    block_of = {s: b for b, s in enumerate(starts)}
    # A block ends at its first jump; what follows one without a leader cannot be reached.
    after: list[list[int]] = []
    for b, s in enumerate(starts):
        last = next((n for n in range(s, ends[b]) if follow[n] != [n + 1]), ends[b] - 1)
        after.append([block_of[t] for t in follow[last] if t in block_of])
        ends[b] = last + 1
    before: list[set[int]] = [set() for _ in starts]
    for b, to in enumerate(after):
        for t in to:
            before[t].add(b)

    reached, stack = {0}, [0]
    while stack:
        for t in after[stack.pop()]:
            if t not in reached:
                reached.add(t)
                stack.append(t)
    dominators = {b: set(reached) for b in reached}
    dominators[0] = {0}
    changed = True
    while changed:
        changed = False
        for b in sorted(reached - {0}):
            ways = [dominators[p] for p in before[b] if p in reached]
            new = set.intersection(*ways) | {b}
            if new != dominators[b]:
                dominators[b], changed = new, True

    bodies: dict[int, set[int]] = {}
    for b in reached:
        for head in after[b]:
            if head in dominators[b]:
                body = bodies.setdefault(head, {head})
                stack = [b]
                while stack:
                    at = stack.pop()
                    if at not in body:
                        body.add(at)
                        stack.extend(p for p in before[at] if p in reached)
    inner = [
        body
        for head, body in bodies.items()
        if not any(other != head and other in body for other in bodies)
    ]
    return [[list(range(starts[b], ends[b])) for b in sorted(body)] for body in inner]


def count(code: list[Instruction], loop: HotLoop) -> dict[str, float] | None:
    """Instructions an element, by kind and in all; None where no loop has the marker."""
    best: dict[str, float] | None = None
    most = 0
    marker = re.compile(loop.marker)
    for body in loops(code):
        blocks = [[code[n] for n in block if code[n].opcode != "NOP"] for block in body]
        if loop.skips:
            blocks = [b for b in blocks if not any(i.opcode.startswith(loop.skips) for i in b)]
        inside = [i for block in blocks for i in block]
        marks = sum(bool(marker.match(i.opcode)) for i in inside)
        if loop.needs and not any(i.opcode.startswith(loop.needs) for i in inside):
            continue
        if marks > most:
            most, elements = marks, marks * loop.elements
            best = {k: sum(kind(i.opcode) == k for i in inside) / elements for k in KINDS}
            best["all"] = len(inside) / elements
    return best


def run(command: list[str], given: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command that must succeed, and keep what it says."""
    done = subprocess.run(command, input=given, text=True, capture_output=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done


def tool(name: str) -> str | None:
    """Where a tool of CUDA is: in PATH, beside nvcc, or in a wheel."""
    places = [Path(found)] if (found := shutil.which(name)) else []
    if nvcc := shutil.which("nvcc"):
        said = run([nvcc, "--dryrun", "-x", "cu", os.devnull]).stderr
        if top := re.search(r"^#\$ TOP=(.*)$", said, re.M):
            places.append(Path(top[1]) / "bin" / name)
    for site in sys.path:
        places += sorted(Path(site).glob(f"nvidia/cu*/bin/{name}"))
        places.append(Path(site) / "triton/backends/nvidia/bin" / name)
    return next((str(p) for p in places if os.access(p, os.X_OK)), None)


def built(source: str, folder: Path) -> Path:
    """What setup.py has made of a source in a folder of objects."""
    piece = re.fullmatch(r"(\w+)<(\w+)>", source)
    name = f"build/pieces/{piece[1]}_{piece[2]}" if piece else f"csrc/cuda/{source}"
    return folder / f"{name}.o"


def compiled(source: str, folder: Path, tools: dict[str, str]) -> Path:
    """One .cu file, compiled for ARCH alone."""
    cubin = folder / f"{source}.cubin"
    arch = ARCH.removeprefix("sm_")
    nvcc = [tools["nvcc"], "-std=c++17", "-O3", "-cubin", "-o", str(cubin)]
    nvcc += ["-gencode", f"arch=compute_{arch},code={ARCH}"]
    if piece := re.fullmatch(r"(\w+)<(\w+)>", source):
        nvcc += [f"-DDVAE_KERNEL={piece[1]}", f"-DDVAE_LIKELIHOOD={piece[2]}"]
        source = "instantiate"
    run([*nvcc, str(ROOT / f"csrc/cuda/{source}.cu")])
    return cubin


def functions_of(binary: Path, tools: dict[str, str]) -> dict[str, list[Instruction]]:
    """The demangled functions of a file that nvcc has made, as they are for ARCH."""
    if not binary.exists():
        sys.exit(f"{binary} is not there: --objects takes the folder of a build with CUDA kernels")
    sass = run([tools["cuobjdump"], "-sass", "-arch", ARCH, str(binary)]).stdout
    functions = parse(sass)
    names = run(["c++filt"], "\n".join(functions)).stdout.splitlines()
    return dict(zip(names, functions.values(), strict=True))


def count_all(tools: dict[str, str], objects: Path | None) -> dict[str, dict[str, float]]:
    """Every row of the table, of a build's objects or of what is compiled now."""
    counts = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool,
    ):
        sources = sorted({loop.source for loop in LOOPS})

        def functions_in(source: str) -> dict[str, list[Instruction]]:
            if objects is not None:
                return functions_of(built(source, objects), tools)
            return functions_of(compiled(source, Path(folder), tools), tools)

        functions = dict(zip(sources, pool.map(functions_in, sources), strict=True))
    for loop in LOOPS:
        named = [c for n, c in functions[loop.source].items() if re.search(loop.kernel, n)]
        found = count(named[0], loop) if len(named) == 1 else None
        if found is None:
            sys.exit(f"{loop.name}: {len(named)} kernels of that name, no loop with {loop.marker}")
        counts[loop.name] = found
    return counts


def read_table(page: str) -> dict[str, list[str]]:
    """The cells of each row of the page's table."""
    rows = [line.strip("| \n").split("|") for line in page.splitlines() if line.startswith("|")]
    return {cells[0].strip(): [c.strip() for c in cells[1:]] for cells in rows[2:]}


def write_table(counts: dict[str, dict[str, float]], before: dict[str, str]) -> str:
    """A table in Markdown: before, now, and now by kind."""
    head = ["loop", "before", "now", *KINDS]
    lines = ["| " + " | ".join(head) + " |", "|---" + "|--:" * (len(head) - 1) + "|"]
    for name, row in counts.items():
        cells = [name, before.get(name, f"{row['all']:.1f}"), f"{row['all']:.1f}"]
        lines.append("| " + " | ".join(cells + [f"{row[k]:.1f}" for k in KINDS]) + " |")
    return "\n".join(lines)


def main() -> int:
    """Print, write or compare the table."""
    parser = argparse.ArgumentParser(description="Count instructions of the CUDA kernels.")
    parser.add_argument("--update", type=Path, metavar="PAGE", help="rewrite the table in a page")
    parser.add_argument("--check", type=Path, metavar="PAGE", help="compare with a page's table")
    parser.add_argument("--objects", type=Path, metavar="FOLDER", help="of a build, build/temp")
    options = parser.parse_args()
    found = {name: tool(name) for name in ("nvcc", "cuobjdump", "nvdisasm")}
    tools = {name: path for name, path in found.items() if path is not None}
    if missing := sorted(found.keys() - tools.keys()):
        print(f"instructions not counted: no {' and no '.join(missing)}")
        return 0
    # cuobjdump calls the other by its name.
    os.environ["PATH"] = f"{Path(tools['nvdisasm']).parent}{os.pathsep}{os.environ['PATH']}"
    said = re.search(r"release (\d+\.\d+)", run([tools["nvcc"], "--version"]).stdout)
    release = said[1] if said else "of no version"

    page = options.check or options.update
    text = page.read_text() if page and page.exists() else ""
    if options.check and f"nvcc {release}" not in text:
        print(f"instructions not compared: {page} is not of nvcc {release}")
        return 0
    committed = read_table(text)
    counts = count_all(tools, options.objects)
    table = write_table(counts, {name: cells[0] for name, cells in committed.items()})
    print(table)
    if options.update:
        kept = re.sub(r"^\|.*\n?", "", text, flags=re.M)
        place = re.search(r"^\|", text, re.M)
        at = place.start() if place else len(kept)
        options.update.write_text(kept[:at] + table + "\n" + kept[at:])
    if options.check:
        wrong = []
        for name, row in counts.items():
            was = float(committed[name][1]) if name in committed else float("nan")
            if not abs(row["all"] - was) <= TOLERANCE * was + 0.05:
                wrong.append(f"{name}: {row['all']:.1f}, not the {was} of {page}")
        if gone := committed.keys() - counts.keys():
            wrong.append(f"no longer counted: {', '.join(sorted(gone))}")
        if wrong:
            print("\n".join(wrong), f"--update {page} writes it again", sep="\n", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
