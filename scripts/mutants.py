#!/usr/bin/env python3
"""Whether the tests find a wrong formula: one small fault at a time, in a copy of the tree.

    python scripts/mutants.py [--list] [--rev COMMIT] [NAME...]

Each mutant replaces one text of one file, which must be there exactly once; then the tests that
should find it run, until one fails ("killed"; else "survived", and the exit status is 1). The tests
that killed must pass without the fault. `--rev` takes sources and tests of a commit instead of the
working tree. Run it with the Python of `make build`.

A fault in csrc/core is built into the kernels of the base instruction set, which the tests then
use, and into `_core`; at -O1, half a minute. What was built is kept in build/mutants, and taken
again for the same sources.

On 2026-11-29 all 20 of then were killed, by the tests as they were (b373b37, 9,366 of them) and by
those that were left (0eea7a3, 7,092). On 2026-11-30 all of today, by those of 6d85850.
Three survived those of bbd0ed6, and are killed by tests made for them: `mixture-narrow-component`,
`expectation-error`, `resume-best`.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build" / "mutants"
TREE = WORK / "tree"


class Mutant(NamedTuple):
    """`old` becomes `new` in `file`; `tests` is what pytest is given, as a shell has it."""

    name: str
    file: str
    old: str
    new: str
    tests: str


CORE = "tests/core/test_core.py"


def cases(of: str) -> str:
    """The cases of the operator table against float64."""
    return f"tests/operators/test_operators.py -k 'test_agrees and {of}'"


MUTANTS = (
    # --- csrc/core ---
    Mutant(
        "philox-rounds",
        "csrc/core/philox.h",
        "round < 10",
        "round < 9",
        CORE,
    ),
    Mutant(
        "noise-threshold",
        "csrc/core/noise.h",
        "static_cast<double>(p) * 16777216.0",
        "static_cast<double>(p) * 16777215.0",
        CORE,
    ),
    Mutant(
        "noise-normal",
        "csrc/core/noise.h",
        "(static_cast<double>(w0) + 0.5) * 0x1p-32",
        "(static_cast<double>(w0) + 1.0) * 0x1p-32",
        cases("sample_latent and float64"),
    ),
    Mutant(
        "corruption-flip-gradient",
        "csrc/core/corruptions.h",
        "return u < hit ? -grad : grad;",
        "return u < hit ? A(0) : grad;",
        cases("corrupt_backward and bit_flip"),
    ),
    Mutant(
        "latent-ratio",
        "csrc/core/latent.h",
        "return A(0.5) * (noise * noise - z * z + log_var);",
        "return A(0.5) * (noise * noise - z * z - log_var);",
        cases("sample_latent and not backward"),
    ),
    Mutant(
        "latent-gradient",
        "csrc/core/latent.h",
        "log_var = log_var + A(0.5) * (delta * scaled_noise + grad_r);",
        "log_var = log_var + A(0.5) * (delta * scaled_noise - grad_r);",
        cases("sample_latent_backward"),
    ),
    Mutant(
        "mixture-gradient",
        "csrc/core/latent.h",
        "squares = squares + weighted * e;",
        "squares = squares + weighted;",
        cases("mixture_log_ratio_backward"),
    ),
    Mutant(
        "mixture-narrow-component",
        "csrc/core/latent.h",
        "return noise == A(0) ? A(0) : -noise * inverse_std;",
        "return -noise * inverse_std;",
        "tests/operators/test_operators.py -k too_narrow",
    ),
    Mutant(
        "bernoulli-product",
        "csrc/core/bernoulli.h",
        "b = b + e * (A(1) + b);",
        "b = b + e;",
        cases("log_weights and bernoulli"),
    ),
    Mutant(
        "gaussian-derivative",
        "csrc/core/likelihoods.h",
        "d_scale = (u * u - A(1)) / scale;",
        "d_scale = (u * u - A(0.999)) / scale;",
        cases("log_weights_backward and gaussian"),
    ),
    Mutant(
        "laplace-derivative",
        "csrc/core/likelihoods.h",
        "d_scale = (abs(d / scale) - A(1)) / scale;",
        "d_scale = (abs(d / scale) - A(0.999)) / scale;",
        cases("log_weights_backward and laplace"),
    ),
    Mutant(
        "continuous-bernoulli-series",
        "csrc/core/bernoulli.h",
        "p = A(1.0 / 720) - y * p;",
        "p = A(1.0 / 721) - y * p;",
        cases("log_weights_backward and continuous"),
    ),
    Mutant(
        "probabilities-other-class",
        "csrc/core/bernoulli.h",
        "(A(1) - x) * log1p(-p)",
        "(A(1) - x) * log1p(p)",
        cases("log_weights and probabilities"),
    ),
    Mutant(
        "categorical-normaliser",
        "csrc/cpu/ops/categorical.inl",
        "log(sums.sum[i])",
        "log(sums.sum[i] + T(1e-4))",
        "tests/functional/test_categorical.py -k formula",
    ),
    Mutant(
        "logistic-bin",
        "csrc/core/likelihoods.h",
        "kHalfBin = 0.5 / 255;",
        "kHalfBin = 0.5 / 256;",
        cases("log_weights and logistic"),
    ),
    Mutant(
        "logsumexp-squares",
        "csrc/core/logsumexp.h",
        "s2 = s2 * f1 * f1 + other.s2 * f2 * f2;",
        "s2 = s2 * f1 + other.s2 * f2;",
        cases("lse_update"),
    ),
    Mutant(
        "gamma-series",
        "csrc/core/gamma.h",
        "1.0 / 1260",
        "1.0 / 1250",
        cases("log_weights and negative_binomial and float64"),
    ),
    # --- Python ---
    Mutant(
        "reference-mixture-weights",
        "dvae_fast/reference.py",
        "normalised_weights(minus)",
        "normalised_weights(-minus)",
        cases("mixture_log_ratio"),
    ),
    Mutant(
        "objective-dreg",
        "dvae_fast/objectives/loss.py",
        "c * (1 - kl_weight * t * (1 - c))",
        "c * (1 - t * (1 - c))",
        "tests/objectives/test_estimators.py -k weight_of_the_divergence",
    ),
    Mutant(
        "objective-vimco",
        "dvae_fast/objectives/loss.py",
        "signal = (whole - torch.logaddexp(others, mean)) / t",
        "signal = whole - torch.logaddexp(others, mean)",
        "tests/objectives/test_estimators.py -k value_and_gradients",
    ),
    Mutant(
        "statistics-error",
        "dvae_fast/evaluation/statistics.py",
        "(s2 / s1.square() - 1 / count)",
        "(s2 / s1.square())",
        "tests/evaluation/test_evaluate.py",
    ),
    Mutant(
        "statistics-pareto",
        "dvae_fast/evaluation/statistics.py",
        "prior_k * 0.5",
        "prior_k * 0.6",
        "tests/evaluation/test_diagnostics.py",
    ),
    Mutant(
        "expectation-error",
        "dvae_fast/evaluation/expectation.py",
        "second - 2 * mean * first + mean**2 * squares",
        "second - mean * first",
        "tests/evaluation/test_expectation.py",
    ),
    Mutant(
        "evaluation-kick",
        "dvae_fast/evaluation/hamiltonian.py",
        "kick = step if i < count - 1 else half",
        "kick = step",
        "tests/evaluation/test_ais.py",
    ),
    Mutant(
        "resume-best",
        "dvae_fast/training/run.py",
        't.copy_(groups["best"][name])',
        "pass",
        "tests/training/test_train.py -k from_before",
    ),
    Mutant(
        "corruption-baseline",
        "dvae_fast/corruptions/learnable.py",
        "(loss - loss.mean(0)) * (copies / (copies - 1))",
        "(loss - loss.mean(0))",
        "tests/corruptions/test_learnable_corruptions.py -k unbiased",
    ),
    Mutant(
        "posterior-factor",
        "dvae_fast/models/posterior.py",
        "noise @ scale.mT",
        "noise @ scale",
        "tests/models/test_gaussian_posterior.py",
    ),
)


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=TREE, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(TREE), "DVAE_FAST_ISA": "base", **environment},
    )  # fmt: skip


def copy_tree(rev: str | None) -> None:
    """The files that git knows or would take, with what is built for the last copy kept."""
    TREE.mkdir(parents=True, exist_ok=True)
    for old in TREE.iterdir():
        if old.name != "build":
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    if rev is not None:
        archive = subprocess.run(["git", "archive", rev], cwd=ROOT, stdout=-1, check=True).stdout
        subprocess.run(["tar", "-x", "-C", str(TREE)], input=archive, check=True)
        return
    listed = ("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    names = subprocess.run(listed, cwd=ROOT, stdout=-1, text=True, check=True).stdout
    for name in names.split("\0"):
        if (ROOT / name).is_file():
            (TREE / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, TREE / name)


def sources() -> str:
    """A digest of all that the library is built from."""
    digest = hashlib.sha256()
    for path in sorted([*(TREE / "csrc").rglob("*"), TREE / "setup.py"]):
        if path.is_file():
            digest.update(str(path.relative_to(TREE)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def build(whole: bool) -> None:
    """The library of the tree, from `build/mutants` if it was made before; `whole`, from nothing
    but the objects of the copy before."""
    kept = WORK / "libraries" / sources()
    if not kept.is_dir():
        compiler = WORK / "cxx"
        compiler.write_text('#!/usr/bin/env bash\nexec ${MUTANTS_CXX:-g++} "${@/#-O[23]/-O1}"\n')
        compiler.chmod(0o755)
        for made in (TREE / "build").glob("temp*/csrc/**/*.o"):
            if whole or made.name in ("kernels_base.o", "core_module.o"):
                made.unlink()
        # The compiler is a script of another name, which torch warns of.
        done = run(sys.executable, "setup.py", "build_ext", "--inplace", CXX=str(compiler),
                   DVAE_FAST_CORE="1", DVAE_FAST_CUDA="0")  # fmt: skip
        if done.returncode != 0:
            sys.exit(f"the build failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
        kept.mkdir(parents=True)
        for library in (TREE / "dvae_fast").glob("*.so"):
            shutil.copy2(library, kept)
    for library in kept.iterdir():
        shutil.copy2(library, TREE / "dvae_fast")


def failed(*tests: str) -> tuple[int, list[str], str]:
    """pytest's exit status, the tests that failed, its output."""
    done = run(sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--tb=line",
               *tests, OMP_NUM_THREADS="1")  # fmt: skip
    found = re.findall(r"^(?:FAILED|ERROR) (\S.*?)(?: - .*)?$", done.stdout, re.M)
    return done.returncode, found, done.stdout + done.stderr


def verdict(mutant: Mutant) -> tuple[str, str]:
    """("killed", the test that did it) or ("survived", "")."""
    path = TREE / mutant.file
    before, times = path.read_text(), path.stat()
    if (count := before.count(mutant.old)) != 1:
        sys.exit(f"{mutant.name}: {mutant.old!r} must be in {mutant.file} once, is {count} times")
    path.write_text(before.replace(mutant.old, mutant.new))
    compiled = path.suffix in (".h", ".inl")
    if compiled:  # `build` says what is built anew; Python looks at times, and at sizes
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    try:
        if compiled:
            build(whole=False)
        status, names, output = failed(*shlex.split(mutant.tests))
        if status == 1 and names:
            return "killed", names[0]
        if status != 0 or " passed" not in output:
            sys.exit(f"{mutant.name}: pytest ended with {status}:\n{output[-3000:]}")
        return "survived", ""
    finally:
        path.write_text(before)
        if compiled:
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="mutants; default: all")
    parser.add_argument("--list", action="store_true", help="print their names and replacements")
    parser.add_argument("--rev", help="a commit, instead of the working tree")
    options = parser.parse_args()
    known = {m.name: m for m in MUTANTS}
    if unknown := set(options.names) - set(known):
        parser.error(f"NAME must be one of {', '.join(known)}; got {', '.join(sorted(unknown))}")
    chosen = [known[name] for name in options.names] or MUTANTS
    if options.list:
        for m in chosen:
            print(f"{m.name}\n  {m.file}\n  - {m.old}\n  + {m.new}")
        return 0
    copy_tree(options.rev)
    for m in chosen:  # before any work
        if (count := (TREE / m.file).read_text().count(m.old)) != 1:
            sys.exit(f"{m.name}: {m.old!r} must be in {m.file} once, is {count} times")
    build(whole=True)
    killers, survived = [], 0
    for m in chosen:
        start = time.monotonic()
        found, test = verdict(m)
        print(f"{m.name:28} {found:9} {time.monotonic() - start:5.0f} s  {test}", flush=True)
        killers += [test] if test else []
        survived += found == "survived"
        build(whole=True)
    status, names, output = failed(*dict.fromkeys(killers))
    if status != 0:
        sys.exit(f"what killed must pass without a fault: {', '.join(names) or output[-3000:]}")
    print(f"{len(killers)} of {len(chosen)} killed, by tests that pass without the fault")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
