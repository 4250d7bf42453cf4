#!/usr/bin/env bash
# The library for a GPU machine, made on one that has time and needs no GPU: prebuilt/_C.abi3.so and
# SOURCES.sha256, which scripts/gpu_check.sh looks for. One file serves torch 2.11 and newer and
# Python 3.10 and newer.
#
#   PYTHON=python-with-torch-and-CUDA scripts/prebuild.sh      builds for Hopper; TORCH_CUDA_ARCH_LIST:
#                                                              others
#
# nvcc must be of the same CUDA as that torch. Builds in build/prebuilt, again only what has changed.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -z "${PYTHON:-}" ]; then
  PYTHON=python3
  [ ! -x .venv-cuda/bin/python ] || PYTHON=$PWD/.venv-cuda/bin/python  # of .ci/run
fi
work=$PWD/build/prebuilt
sources() { "$PYTHON" scripts/gpu_check/sources.py; }

# ninja of pip is beside the interpreter.
PATH=$(dirname "$("$PYTHON" -c 'import sys; print(sys.executable)')"):$PATH
export DVAE_FAST_CUDA=1 TORCH_CUDA_ARCH_LIST="${TORCH_CUDA_ARCH_LIST:-9.0a}"

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
PYTHONPATH="$work/try" DVAE_FAST_CHECK=0 "$PYTHON" scripts/gpu_check/probe.py cpu cuda

mkdir -p prebuilt
mv "$work/try/dvae_fast/_C.abi3.so" prebuilt/_C.abi3.so
echo "$before" >prebuilt/SOURCES.sha256
ls -l prebuilt
