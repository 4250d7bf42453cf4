#!/usr/bin/env bash
# Builds the extension with CUDA kernels for a GPU machine that has no time to build its own:
# prebuilt/_C.abi3.so. It loads in any Python from 3.10 and any torch from 2.11 with CUDA of the
# same major version, whatever it was built with.
#
#   scripts/prebuild.sh      PYTHON=...                    a Python with such a torch
#                            TORCH_CUDA_ARCH_LIST=9.0a     the GPUs it is for
#
# Needs nvcc of that major version; no GPU. prebuilt/COMMIT says what it was built from.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -z "${PYTHON:-}" ]; then
  PYTHON=python3
  [ ! -x .venv-cuda/bin/python ] || PYTHON=$PWD/.venv-cuda/bin/python  # of .ci/run
fi
export DVAE_FAST_CUDA=1 TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-9.0a}

# ninja of pip is beside the interpreter.
PATH=$(dirname "$("$PYTHON" -c 'import sys; print(sys.executable)')"):$PATH
"$PYTHON" setup.py --quiet build_ext --build-lib build/prebuilt/lib --build-temp build/prebuilt/temp

mkdir -p prebuilt
strip --strip-unneeded -o prebuilt/_C.abi3.so build/prebuilt/lib/dvae_fast/_C.abi3.so
"$PYTHON" - <<'PY'
import torch

torch.ops.load_library("prebuilt/_C.abi3.so")
print("prebuilt/_C.abi3.so: for", torch.ops.dvae_fast._cuda_architectures())
PY
{
  git rev-parse HEAD
  git diff --quiet HEAD -- csrc setup.py || echo "with changes in csrc or setup.py"
} >prebuilt/COMMIT
ls -l prebuilt/_C.abi3.so
