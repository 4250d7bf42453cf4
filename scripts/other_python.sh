#!/usr/bin/env bash
# Prints the oldest supported Python of another version than the given one: on PATH, or of pyenv's,
# on PATH or not. Nothing where there is none that makes environments.
#
#   scripts/other_python.sh PYTHON
set -euo pipefail
own=$("$1" -c 'import sys; print(sys.version_info[1])')
versions=${PYENV_ROOT:-$HOME/.pyenv}/versions

for minor in {10..14}; do
  [ "$minor" -ne "$own" ] || continue
  for each in "$(command -v "python3.$minor" || true)" "$versions/3.$minor".*/bin/python; do
    # A shim of pyenv's is on PATH for versions that are not switched on, too, and then fails; a
    # Debian's Python may lack ensurepip.
    if [ -x "$each" ] && "$each" -c 'import ensurepip, venv' 2>/dev/null; then
      echo "$each"
      exit
    fi
  done
done
