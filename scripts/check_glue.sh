#!/usr/bin/env bash
# Checks that the C++ that talks to torch (csrc/torch) compiles against other versions of torch than
# the installed one: syntax and types alone, nothing is built or run.
#
#   scripts/check_glue.sh [TORCH_VERSION...]      default: 2.11.0, the oldest that is promised
#
# Of a torch's wheel only the headers are kept, in build/headers. The files for CUDA are checked
# where there is an nvcc, whose toolkit has CUDA's headers.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
[ $# -gt 0 ] || set -- 2.11.0

# TORCH_VERSION -> the folder of its headers.
headers() {
  local folder=build/headers/torch-$1
  [ -e "$folder" ] || {
    local wheel=$folder.wheel
    rm -rf "$wheel" && mkdir -p "$wheel"
    "$PYTHON" -m pip download --quiet --no-deps --only-binary :all: --dest "$wheel" "torch==$1" >&2
    "$PYTHON" - "$wheel" <<'PY'
import sys, zipfile
from pathlib import Path

folder = Path(sys.argv[1])
[path] = folder.glob("*.whl")
with zipfile.ZipFile(path) as wheel:
    wheel.extractall(folder, [n for n in wheel.namelist() if n.startswith("torch/include/")])
PY
    mv "$wheel/torch/include" "$folder"
    rm -rf "$wheel"
  }
  echo "$folder"
}

python_include=$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("include"))')
cuda=""
if command -v nvcc >/dev/null; then
  # Where nvcc itself says it lives: the one in PATH may be a script that calls it.
  cuda=$(realpath "$(nvcc --dryrun -x cu /dev/null 2>&1 | sed -n 's/^#\$ TOP=//p')")/include
else
  echo "check_glue: no nvcc, so the files for CUDA are not checked"
fi

# compile FLAG... -- FILE...
compile() {
  local flags=()
  while [ "$1" != -- ]; do
    flags+=("$1")
    shift
  done
  printf '%s\0' "${@:2}" | xargs -0 -n 1 -P "${JOBS:-$(nproc)}" ${CXX:-g++} "${flags[@]}"
}

for version in "$@"; do
  torch=$(headers "$version")
  # As setup.py compiles them, but for what makes code. Warnings of torch's headers are not ours.
  flags=(-fsyntax-only -std=c++17 -fvisibility=hidden -Wall -Wextra -Werror
    -DTORCH_TARGET_VERSION=0x020b000000000000
    -isystem "$torch" -isystem "$torch/torch/csrc/api/include" -isystem "$python_include")
  if [ -n "$cuda" ]; then
    # The files of the CPU as well: USE_CUDA shows more of torch's headers, and hides none.
    compile "${flags[@]}" -DUSE_CUDA '-DDVAE_CUDA_ARCHES="9.0"' -isystem "$cuda" -- \
      csrc/torch/{ops,cpu,cuda}/*.cpp
  else
    compile "${flags[@]}" -- csrc/torch/{ops,cpu}/*.cpp
  fi
  echo "check_glue: csrc/torch compiles against torch $version${cuda:+, with CUDA}"
done
