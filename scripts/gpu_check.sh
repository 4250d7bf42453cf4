#!/usr/bin/env bash
# Everything that needs a GPU, on a machine that is had for minutes: kernels, their check, benchmarks,
# tests, compute-sanitizer, compiled rivals, in the order of what matters. Whatever fails, runs out of
# time or is killed, verdict.json tells what was found until then.
#
#   [OUT=folder] [GPU_CHECK_SECONDS=540] scripts/gpu_check.sh [--steps A,B] [--from FOLDER] [--dry-run]
#
#   machine     device, driver, versions; always first
#   library     prebuilt/_C.abi3.so where it fits these sources and this device (scripts/prebuild.sh
#               makes it elsewhere), else a build for this device alone, at most 150 s; always second
#   check       every operator against the float64 reference, masks against the CPU's bits
#   bench       copy bandwidth, matrix rate, ours and eager PyTorch
#   tests       those that take a GPU, in 14 processes; of tests of many cases, a sample
#   memcheck    compute-sanitizer over the check's small cases, as
#   racecheck   this one
#   compile     torch.compile as a rival, which takes minutes to compile
#
# Needs PYTHON (default python3) with torch >= 2.11 that sees a GPU; to build, nvcc of the same CUDA,
# g++, setuptools, ninja, pybind11; for the tests pytest, pytest-benchmark, scipy and, to
# be quick, pytest-xdist. Installs nothing and needs no network; a step that lacks something is
# skipped and says so. DVAE_FAST_COMMIT names the commit where .git is not there.
#
# OUT (default benchmarks/gpu_check) gets seven files: verdict.json (machine, steps, targets met and
# missed), check.json, bench.json, tests.xml and three logs. All steps end within GPU_CHECK_SECONDS.
# A second command adds to the same verdict.json: `--steps tests,compile`; where OUT was emptied
# meanwhile, `--from` names the folder with what the first one found. The exit status is 1 where a
# step did not pass; a target missed is no failure. `--dry-run`: every step, small, on the CPU.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHONPATH="$PWD/scripts${PYTHONPATH:+:$PYTHONPATH}" exec "${PYTHON:-python3}" -m gpu_check "$@"
