#!/usr/bin/env bash
# The tests that need DeepSpeed: ZeRO-2, ZeRO-3 and the LoRA merge under it, two processes on the CPU. DeepSpeed is put into
# a folder of its own, seen by these tests only, without the packages it needs on a GPU alone.
#
#   tests/ci_deepspeed/run.sh [FOLDER]
set -euo pipefail
cd "$(dirname "$0")/../.."
target="${1:-.venv-deepspeed}"
if [ ! -d "$target/deepspeed" ]; then
    DS_BUILD_OPS=0 python -m pip install --quiet --no-deps --target "$target" \
        deepspeed==0.19.8 hjson==3.1.0 ninja==1.13.2 py-cpuinfo==9.0.0
fi
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
PYTHONPATH="$target:tests${PYTHONPATH:+:$PYTHONPATH}" \
    python -m pytest -n 0 -p no_skips -q tests/test_training_distributed.py -k "deepspeed_learns or zero_3"
