#!/usr/bin/env bash
# Builds the extension with CUDA kernels for a GPU machine that has no time to build its own:
# prebuilt/_C.abi3.so. It loads in any Python from 3.10 and any torch from 2.11 with CUDA of the
# same major version, whatever it was built with.
#
#   scripts/prebuild.sh      PYTHON=...                    a Python with such a torch
#                            TORCH_CUDA_ARCH_LIST=9.0a     the GPUs it is for
#
# Needs nvcc of that major version; no GPU. prebuilt/SOURCES.sha256 says what it was built from, by
# which scripts/gpu_check.sh knows it. Builds again only what has changed.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -z "${PYTHON:-}" ]; then
  PYTHON=python3
  [ ! -x .venv-cuda/bin/python ] || PYTHON=$PWD/.venv-cuda/bin/python  # of .ci/run
fi
export DVAE_FAST_CUDA=1 TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-9.0a}
work=$PWD/build/prebuilt
sources() { "$PYTHON" scripts/gpu_check/sources.py; }

# ninja of pip is beside the interpreter.
PATH=$(dirname "$("$PYTHON" -c 'import sys; print(sys.executable)')"):$PATH
before=$(sources)
"$PYTHON" setup.py --quiet build_ext --build-lib "$work/lib" --build-temp "$work/temp"
if [ "$(sources)" != "$before" ]; then
  echo "prebuild: csrc must not change during the build, and did; run this again" >&2
  exit 1
fi

# Loaded and run on the CPU before it is called ready, with these Python files.
rm -rf "$work/try" && mkdir -p "$work/try"
find dvae_fast -name '*.py' -exec cp --parents -t "$work/try" {} +
strip --strip-unneeded -o "$work/try/dvae_fast/_C.abi3.so" "$work/lib/dvae_fast/_C.abi3.so"
PYTHONPATH="$work/try" "$PYTHON" scripts/gpu_check/probe.py cpu cuda

mkdir -p prebuilt
mv "$work/try/dvae_fast/_C.abi3.so" prebuilt/_C.abi3.so
echo "$before" >prebuilt/SOURCES.sha256
ls -l prebuilt/_C.abi3.so
