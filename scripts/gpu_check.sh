#!/usr/bin/env bash
# Everything that needs a GPU, in one command: builds the CUDA kernels in place, runs the tests that
# use them, compute-sanitizer over a small case, and the benchmarks; writes one JSON file.
#
#   scripts/gpu_check.sh [OUTPUT.json]      default: benchmarks/gpu_results.json
#
# Needs a Python (PYTHON=..., default python3) that has torch with CUDA, and nvcc. Installs what
# else is missing into that Python; where it cannot, goes on without what is not needed. Builds for
# the GPU that is there (TORCH_CUDA_ARCH_LIST: others). Ends within 8 minutes (GPU_CHECK_SECONDS):
# a step that would take longer is stopped, and counts as failed.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
PYTHON=${PYTHON:-python3}
output=${1:-benchmarks/gpu_results.json}
started=$SECONDS
limit=${GPU_CHECK_SECONDS:-480}

step() { printf '\n== %s (after %d s)\n' "$*" $((SECONDS - started)); }

# within MOST KEPT COMMAND...: in MOST seconds, and KEPT before the end. alone=1: interrupts the
# command and not its processes, which pytest needs to say what has failed by then.
within() {
  local left=$((limit - (SECONDS - started) - $2)) most=$1
  shift 2
  [ "$left" -ge "$most" ] || most=$left
  [ "$most" -gt 0 ] || { echo "no time is left for it" >&2; return 124; }
  timeout ${alone:+--foreground} --signal=INT --kill-after=10 "$most" "$@"
}

# --- all that can be missing, before anything is done ---

missing=()
command -v "$PYTHON" >/dev/null || missing+=("$PYTHON (name another: PYTHON=...)")
command -v g++ >/dev/null || missing+=("g++")
[ -n "${CUDA_HOME:-}" ] || [ ! -x /usr/local/cuda/bin/nvcc ] || export CUDA_HOME=/usr/local/cuda
[ -z "${CUDA_HOME:-}" ] || export PATH="$CUDA_HOME/bin:$PATH"
command -v nvcc >/dev/null || missing+=("nvcc (set CUDA_HOME if it is not in PATH)")
# Where nvcc itself says it lives: the one in PATH may be a script that calls it.
[ -n "${CUDA_HOME:-}" ] || ! command -v nvcc >/dev/null || {
  CUDA_HOME=$(realpath "$(nvcc --dryrun -x cu /dev/null 2>&1 | sed -n 's/^#\$ TOP=//p')")
  export CUDA_HOME
}
mkdir -p "$(dirname "$output")" && : >>"$output" || missing+=("a place to write $output")
if command -v "$PYTHON" >/dev/null; then
  "$PYTHON" - <<'PY' || missing+=("a torch >= 2.11 that sees a GPU, in $PYTHON")
import sys
try:
    import torch
except ImportError as error:
    sys.exit(f"gpu_check: {error}")
version = tuple(int(n) for n in torch.__version__.split(".")[:2])
sys.exit(not (version >= (2, 11) and torch.version.cuda and torch.cuda.is_available()))
PY
  if command -v nvcc >/dev/null; then
    cuda=$("$PYTHON" -c 'import torch; print((torch.version.cuda or "").split(".")[0])' 2>/dev/null)
    [[ -z "$cuda" || $(nvcc --version) == *"release $cuda."* ]] ||
      missing+=("an nvcc of CUDA $cuda, as torch is built with (this: $(nvcc --version | tail -n 1))")
  fi
fi
if [ ${#missing[@]} -gt 0 ]; then
  printf 'gpu_check: missing: %s\n' "${missing[@]}" >&2
  exit 1
fi

: >"$output"

# --- build ---

# Of the packages given, those that are not there.
absent() {
  "$PYTHON" - "$@" <<'PY'
import sys
from importlib.metadata import PackageNotFoundError, version

for package in sys.argv[1:]:
    name, _, least = package.partition(">=")
    try:
        if int(version(name).split(".")[0]) < int(least or 0):
            print(package)
    except PackageNotFoundError:
        print(package)
PY
}

step "Tools"
needed=("setuptools>=77" ninja pybind11 numpy pytest pytest-benchmark scipy typer rich scikit-learn
  safetensors)
mapfile -t tools < <(absent "${needed[@]}" hypothesis matplotlib pooch pytest-xdist)
if [ ${#tools[@]} -gt 0 ]; then
  echo "Installing ${tools[*]}"
  # Where there is no network this fails soon, and matters only if one is needed.
  "$PYTHON" -m pip install --quiet --retries 0 --timeout 15 "${tools[@]}"
  mapfile -t tools < <(absent "${needed[@]}")
  if [ ${#tools[@]} -gt 0 ]; then
    printf 'gpu_check: missing, and pip could not install it: %s\n' "${tools[@]}" >&2
    exit 1
  fi
fi

step "Build"
# ninja and cmake of pip are beside the interpreter.
PATH=$(dirname "$("$PYTHON" -c 'import sys; print(sys.executable)')"):$PATH
if [ -z "${TORCH_CUDA_ARCH_LIST:-}" ]; then
  TORCH_CUDA_ARCH_LIST=$("$PYTHON" -c \
    'import torch; print(".".join(map(str, torch.cuda.get_device_capability())))')
  export TORCH_CUDA_ARCH_LIST
fi
DVAE_FAST_CUDA=1 "$PYTHON" setup.py --quiet build_ext --inplace >build.log 2>&1 || {
  tail -n 40 build.log >&2
  echo "gpu_check: the build failed, see build.log" >&2
  exit 1
}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
"$PYTHON" -c 'from dvae_fast import ops; assert ops.cuda_kernels(), ops.LIBRARY_ERROR' || exit 1

# --- check; a failure is counted and the rest goes on ---

failed=0
record() {  # NAME STATUS
  checks+=("$1=$2")
  [ "$2" -eq 0 ] || failed=1
}
checks=()
step "Tests on the GPU"
# Every test that has a device takes both; those of the CPU alone have their own CI. In a few
# processes: most of their time is Python's, and torch.compile's.
processes=()
"$PYTHON" -c "import xdist" 2>/dev/null && processes=(-n 6)
alone=1 within 180 250 "$PYTHON" -m pytest -q -p no:cacheprovider "${processes[@]}" \
  -k "cuda or graph or gpu"
record tests $?

if command -v compute-sanitizer >/dev/null; then
  # Of our kernels alone; and each tensor an allocation of its own, or a kernel could leave one
  # unnoticed for what torch's allocator has beside it.
  ours=()
  [[ $(compute-sanitizer --help 2>&1) != *--kernel-name* ]] || ours=(--kernel-name kns=dvae)
  for tool in memcheck racecheck; do
    step "compute-sanitizer $tool"
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 within 60 170 compute-sanitizer --tool "$tool" "${ours[@]}" \
      --error-exitcode 9 "$PYTHON" scripts/gpu_small.py
    record "$tool" $?
  done
else
  echo "compute-sanitizer is not here: skipped"
fi

step "Benchmarks"
# Writes what it has after each case.
DVAE_FAST_CHECKS="${checks[*]}" within 300 0 "$PYTHON" benchmarks/gpu.py --json "$output" --seconds 0.3
record benchmarks $?

step "Done"
if [ "$failed" -eq 0 ]; then
  echo "All passed; $output"
else
  echo "gpu_check: something failed (${checks[*]}), see above; $output" >&2
fi
exit "$failed"
