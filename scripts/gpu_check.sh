#!/usr/bin/env bash
# Everything that needs a GPU, in one command: builds the CUDA kernels in place, runs the tests that
# use them, compute-sanitizer over a small case, and the benchmarks; writes one JSON file.
#
#   scripts/gpu_check.sh [OUTPUT.json]      default: benchmarks/gpu_results.json
#
# Needs a Python (PYTHON=..., default python3) that has torch with CUDA, and nvcc. Installs what
# else is missing into that Python. Builds for the GPU that is there (TORCH_CUDA_ARCH_LIST: others).
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
output=${1:-benchmarks/gpu_results.json}
started=$SECONDS

step() { printf '\n== %s (after %d s)\n' "$*" $((SECONDS - started)); }

# --- all that can be missing, before anything is done ---

missing=()
command -v "$PYTHON" >/dev/null || missing+=("$PYTHON (name another: PYTHON=...)")
command -v g++ >/dev/null || missing+=("g++")
[ -n "${CUDA_HOME:-}" ] || [ ! -x /usr/local/cuda/bin/nvcc ] || export CUDA_HOME=/usr/local/cuda
[ -z "${CUDA_HOME:-}" ] || export PATH="$CUDA_HOME/bin:$PATH"
command -v nvcc >/dev/null || missing+=("nvcc (set CUDA_HOME if it is not in PATH)")
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
    nvcc --version | grep -q "release $cuda\\." ||
      missing+=("an nvcc of CUDA $cuda, as torch is built with (this: $(nvcc --version | tail -n 1))")
  fi
fi
if [ ${#missing[@]} -gt 0 ]; then
  printf 'gpu_check: missing: %s\n' "${missing[@]}" >&2
  exit 1
fi

: >"$output"

# --- build ---

step "Tools"
tools=()
"$PYTHON" -c 'import setuptools, sys; sys.exit(int(setuptools.__version__.split(".")[0]) < 77)' \
  2>/dev/null || tools+=("setuptools>=77")
for module in ninja:ninja pybind11:pybind11 numpy:numpy pytest:pytest \
  pytest_benchmark:pytest-benchmark hypothesis:hypothesis scipy:scipy typer:typer rich:rich \
  sklearn:scikit-learn safetensors:safetensors matplotlib:matplotlib pooch:pooch; do
  "$PYTHON" -c "import ${module%%:*}" 2>/dev/null || tools+=("${module##*:}")
done
if [ ${#tools[@]} -gt 0 ]; then
  echo "Installing ${tools[*]}"
  "$PYTHON" -m pip install --quiet "${tools[@]}" || exit 1
fi

step "Build"
# ninja and cmake of pip are beside the interpreter.
export PATH="$(dirname "$("$PYTHON" -c 'import sys; print(sys.executable)')"):$PATH"
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
# Every test that has a device takes both; those of the CPU alone have their own CI.
timeout 200 "$PYTHON" -m pytest -q -p no:cacheprovider -k "cuda or graph or gpu"
record tests $?

if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck; do
    step "compute-sanitizer $tool"
    timeout 90 compute-sanitizer --tool "$tool" --error-exitcode 9 "$PYTHON" scripts/gpu_small.py
    record "$tool" $?
  done
else
  echo "compute-sanitizer is not here: skipped"
fi

step "Benchmarks"
DVAE_FAST_CHECKS="${checks[*]}" timeout 240 "$PYTHON" benchmarks/gpu.py --json "$output" --seconds 0.3
record benchmarks $?

step "Done"
[ "$failed" -eq 0 ] && echo "All passed; $output" || echo "gpu_check: something failed, see above; $output" >&2
exit "$failed"
