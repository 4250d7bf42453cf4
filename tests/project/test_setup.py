"""setup.py's choice: whether CUDA kernels are built, with which toolkit, for which GPUs."""

from __future__ import annotations

import importlib.util
import os
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from forks import Program

if TYPE_CHECKING:
    import subprocess

ROOT = Path(__file__).parents[2]
TORCH = "2.13.0+cu130"


def _setup() -> Any:
    spec = importlib.util.spec_from_file_location("dvae_fast_setup", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # NamedTuple looks its module up
    spec.loader.exec_module(module)
    return module


setup = _setup()


def _script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def _toolkit(home: Path, version: str = "13.0", headers: bool = True) -> Path:
    """A folder that looks like a CUDA toolkit, with an nvcc that answers the build's questions."""
    _script(
        home / "bin" / "nvcc",
        f"""case "$*" in
        --version) echo "Cuda compilation tools, release {version}, V{version}.88" ;;
        --dryrun*) echo "#\\$ TOP={home}/bin/.." >&2 ;;
        --list-gpu-code) printf 'sm_80\\nsm_90\\nsm_100\\n' ;;
        *) exit 1 ;;
        esac""",
    )
    (home / "include").mkdir()
    if headers:
        (home / "include" / "cuda_runtime_api.h").touch()
    return home


def _environ(*folders: Path, **more: str) -> dict[str, str]:
    return {"PATH": os.pathsep.join(map(str, folders)), **more}


@pytest.fixture(autouse=True)
def _no_toolkit_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "USUAL_TOOLKIT", "/nowhere")


@pytest.mark.parametrize("switch", ["", "1"])
def test_nvcc_of_the_same_major_version_is_taken(tmp_path: Path, switch: str) -> None:
    home = _toolkit(tmp_path / "cuda", "13.2")
    environ = _environ(home / "bin", DVAE_FAST_CUDA=switch)
    toolkit, missing = setup.choose_cuda(environ, TORCH, "13.0", [])
    assert toolkit == setup.Toolkit(str(home), "13.2")
    assert missing == ""


def test_a_script_that_calls_nvcc_leads_to_its_toolkit(tmp_path: Path) -> None:
    home = _toolkit(tmp_path / "cuda")
    _script(tmp_path / "local" / "bin" / "nvcc", f'exec {home}/bin/nvcc "$@"')
    toolkit, _ = setup.choose_cuda(_environ(tmp_path / "local" / "bin"), TORCH, "13.0", [])
    assert toolkit == setup.Toolkit(str(home), "13.0")


def test_an_nvcc_that_does_not_say_where_it_lives_lives_where_it_is(tmp_path: Path) -> None:
    home = _toolkit(tmp_path / "cuda")
    nvcc = home / "bin" / "nvcc"
    nvcc.write_text(nvcc.read_text().replace(f"TOP={home}", "TOP=/nowhere"))
    toolkit, _ = setup.choose_cuda(_environ(home / "bin"), TORCH, "13.0", [])
    assert toolkit == setup.Toolkit(str(home), "13.0")


def test_cuda_home_goes_before_path(tmp_path: Path) -> None:
    wanted, other = _toolkit(tmp_path / "wanted"), _toolkit(tmp_path / "other", "12.8")
    environ = _environ(other / "bin", CUDA_HOME=str(wanted))
    assert setup.choose_cuda(environ, TORCH, "13.0", [])[0].home == str(wanted)


def test_0_builds_none(tmp_path: Path) -> None:
    home = _toolkit(tmp_path / "cuda")
    environ = _environ(home / "bin", DVAE_FAST_CUDA="0")
    assert setup.choose_cuda(environ, TORCH, "13.0", []) == (None, "")


def _another_major(tmp_path: Path) -> dict[str, str]:
    return _environ(_toolkit(tmp_path / "cuda", "12.8") / "bin")


def _no_nvcc(tmp_path: Path) -> dict[str, str]:
    return _environ(tmp_path)


def _cuda_home_without_nvcc(tmp_path: Path) -> dict[str, str]:
    # Also where there is one in PATH: who names a toolkit does not want another.
    return _environ(_toolkit(tmp_path / "cuda") / "bin", CUDA_HOME=str(tmp_path / "none"))


def _broken_nvcc(tmp_path: Path) -> dict[str, str]:
    _script(tmp_path / "bin" / "nvcc", "exec /nowhere/nvcc")
    return _environ(tmp_path / "bin")


def _no_headers(tmp_path: Path) -> dict[str, str]:
    return _environ(_toolkit(tmp_path / "cuda", headers=False) / "bin")


@pytest.mark.parametrize(
    ("machine", "missing"),
    [
        (_another_major, r"an nvcc of CUDA 13, which torch .* is built with \(.*/cuda has 12\.8\)"),
        (_no_nvcc, r"nvcc \(install the CUDA toolkit, or set CUDA_HOME\)"),
        (_cuda_home_without_nvcc, r"nvcc \(none in .*/none/bin, where CUDA_HOME points\)"),
        (_broken_nvcc, r"an nvcc that runs \(.*/bin/nvcc --version names no release\)"),
        (_no_headers, r"cuda_runtime_api\.h \(in .*/cuda/include, or of .*\)"),
    ],
)
def test_what_is_missing_is_said_or_stops_the_build(
    tmp_path: Path, machine: Any, missing: str
) -> None:
    if machine is _no_headers and Path("/usr/include/cuda_runtime_api.h").exists():
        pytest.skip("the system's own headers are found")
    environ = machine(tmp_path)
    toolkit, said = setup.choose_cuda(environ, TORCH, "13.0", [])
    assert toolkit is None
    assert setup.re.fullmatch(missing, said)
    environ["DVAE_FAST_CUDA"] = "1"
    with pytest.raises(SystemExit, match=f"^dvae_fast: DVAE_FAST_CUDA=1 needs {missing}$"):
        setup.choose_cuda(environ, TORCH, "13.0", [])


def test_torch_without_cuda(tmp_path: Path) -> None:
    missing = "a torch with CUDA (this is 2.13.0+cpu)"
    assert setup.choose_cuda(_environ(tmp_path), "2.13.0+cpu", None, []) == (None, missing)
    with pytest.raises(SystemExit, match=r"a torch with CUDA \(.*\) and nvcc \(install"):
        setup.choose_cuda(_environ(tmp_path, DVAE_FAST_CUDA="1"), "2.13.0+cpu", None, [])
    # Where the torch alone is missing, nothing is said of the nvcc that is there.
    home = _toolkit(tmp_path / "cuda")
    with pytest.raises(SystemExit, match=r"needs a torch with CUDA \(this is 2\.13\.0\+cpu\)$"):
        setup.choose_cuda(_environ(home / "bin", DVAE_FAST_CUDA="1"), "2.13.0+cpu", None, [])


@pytest.mark.parametrize(
    "folder", ["nvidia/cu13", "nvidia/cuda_runtime", "cuda/targets/sbsa-linux"]
)
def test_headers_are_found_elsewhere_than_in_the_toolkits_include(
    tmp_path: Path, folder: str
) -> None:
    if Path("/usr/include/cuda_runtime_api.h").exists():
        pytest.skip("the system's own headers are found")
    home = _toolkit(tmp_path / "cuda", headers=False)
    include = tmp_path / folder / "include"
    include.mkdir(parents=True)
    (include / "cuda_runtime_api.h").touch()
    packages = [str(tmp_path / "another"), str(tmp_path / "nvidia")]
    toolkit, _ = setup.choose_cuda(_environ(home / "bin"), TORCH, "13.0", packages)
    assert toolkit == setup.Toolkit(str(home), "13.0", (str(include),))


@pytest.mark.parametrize("switch", ["2", "yes", "true", " 1", "-1"])
def test_a_switch_that_is_neither_is_refused(tmp_path: Path, switch: str) -> None:
    with pytest.raises(SystemExit, match=r"^dvae_fast: DVAE_FAST_CUDA must be 0 or 1, or unset"):
        setup.choose_cuda(_environ(tmp_path, DVAE_FAST_CUDA=switch), TORCH, "13.0", [])


@pytest.mark.parametrize(
    ("wanted", "built"),
    [
        ("9.0", ["9.0"]),
        ("10.0 8.0;9.0a+PTX", ["8.0", "9.0a+PTX", "10.0"]),
        ("Hopper", ["9.0+PTX"]),
    ],
)
def test_architectures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: str, built: list[str]
) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", wanted)
    toolkit = setup.Toolkit(str(_toolkit(tmp_path / "cuda")), "13.0")
    assert setup.cuda_architectures(toolkit) == built


@pytest.mark.parametrize(
    ("wanted", "error"),
    [
        ("banana", r"must name the GPUs to build for, as 9\.0 or 8\.0;9\.0\+PTX, got 'banana'"),
        ("sm_90", r"must name the GPUs to build for, .*, got 'sm_90'"),
        ("9", r"must name the GPUs to build for, .*, got '9'"),
        ("7.0;9.0", r"must name GPUs that nvcc 13\.0 compiles for \(8\.0, 9\.0, 10\.0\), got 7\.0"),
    ],
)
def test_wrong_architectures_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: str, error: str
) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", wanted)
    toolkit = setup.Toolkit(str(_toolkit(tmp_path / "cuda")), "13.0")
    with pytest.raises(SystemExit, match=f"^dvae_fast: TORCH_CUDA_ARCH_LIST {error}$"):
        setup.cuda_architectures(toolkit)


def test_architectures_are_those_of_torch_where_none_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "")
    toolkit = setup.Toolkit(str(_toolkit(tmp_path / "cuda")), "13.0")
    monkeypatch.setattr(
        setup.torch._C, "_cuda_getArchFlags", lambda: "sm_80 sm_90a sm_100", raising=False
    )
    assert setup.cuda_architectures(toolkit) == ["8.0", "9.0a", "10.0+PTX"]
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "")
    monkeypatch.setattr(setup.torch._C, "_cuda_getArchFlags", lambda: "")
    with pytest.raises(SystemExit, match="TORCH_CUDA_ARCH_LIST must name the GPUs"):
        setup.cuda_architectures(toolkit)


def test_setup_says_it_in_one_line() -> None:
    done = _run("--version", DVAE_FAST_CUDA="nonsense")
    assert done.returncode == 1
    assert done.stderr == "dvae_fast: DVAE_FAST_CUDA must be 0 or 1, or unset, got 'nonsense'\n"


# --- without torch, without a compiler ----------------------------------------------------------


def _run(*arguments: str, torch: bool = True, **environ: str) -> subprocess.CompletedProcess[str]:
    """setup.py, as a frontend calls it; without torch, as in an isolated build."""
    call = f"import sys, runpy; sys.argv = {['setup.py', *arguments]!r}; "
    if not torch:
        call += "sys.modules['torch'] = None; "
    call += "runpy.run_path('setup.py', run_name='__main__')"
    return Program(
        "-c", call, env={**os.environ, "DVAE_FAST_CUDA": "0", **environ}, cwd=ROOT
    ).result()


@pytest.mark.parametrize("command", ["bdist_wheel", "editable_wheel"])
def test_an_isolated_build_says_how_to_do_without(command: str) -> None:
    done = _run(command, torch=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("dvae_fast: torch is needed to build (")
    assert "--no-build-isolation" in line
    assert "DVAE_FAST_PURE=1" in line
    assert "-e ." not in line  # nobody asked for that here


def test_metadata_needs_no_torch() -> None:
    done = _run("--version", torch=False)
    assert done.returncode == 0, done.stderr


def test_without_a_compiler_the_pure_install_is_named() -> None:
    done = _run("bdist_wheel", CXX="no-such-compiler")
    assert done.returncode == 1
    assert "no C++ compiler (no-such-compiler)" in done.stderr
    assert "DVAE_FAST_PURE=1" in done.stderr


@pytest.mark.parametrize("torch", [False, True])
def test_a_pure_wheel_has_no_library(tmp_path: Path, torch: bool) -> None:
    done = _run(
        "-q", "build", "-b", str(tmp_path / "build"), "bdist_wheel", "-d", str(tmp_path),
        torch=torch, DVAE_FAST_PURE="1", CXX="no-such-compiler",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as files:
        names = files.namelist()
    assert "dvae_fast/reference.py" in names
    assert not any(name.endswith((".so", ".cpp")) for name in names)


def test_a_switch_of_the_build_is_0_or_1() -> None:
    done = _run("--version", DVAE_FAST_PURE="yes")
    assert (done.returncode, done.stderr) == (
        1,
        "dvae_fast: DVAE_FAST_PURE must be 0 or 1, or unset, got 'yes'\n",
    )


def test_the_sdist_has_all_that_is_compiled(tmp_path: Path) -> None:
    done = _run("-q", "egg_info", "-e", str(tmp_path), "sdist", "-d", str(tmp_path), torch=False)
    assert done.returncode == 0, done.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as files:
        names = {name.split("/", 1)[-1] for name in files.getnames()}
    sources = {str(p.relative_to(ROOT)) for p in (ROOT / "csrc").rglob("*.*") if p.is_file()}
    assert sources <= names
    assert {"setup.py", "pyproject.toml", "dvae_fast/py.typed", "LICENSE"} <= names
