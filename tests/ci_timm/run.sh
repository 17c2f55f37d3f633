#!/usr/bin/env bash
# The tests that need timm, which the main environment does not have (its torchvision would break transformers and
# lightning beside a CPU torch). timm, spectre-fm and the torchvision that belongs to the installed torch are put into a folder of
# their own, without their dependencies, and seen by these tests only.
#
#   tests/ci_timm/run.sh [FOLDER]
set -euo pipefail
cd "$(dirname "$0")/../.."
target="${1:-.venv-timm}"
# torch 2.N goes with torchvision 0.(N + 15).
torchvision="$(python - <<'PY'
import re, torch
minor, patch = re.match(r"2\.(\d+)\.(\d+)", torch.__version__).groups()
print(f"0.{int(minor) + 15}.{patch}")
PY
)"
if [ ! -d "$target/timm" ] || [ ! -d "$target/spectre" ]; then
    python -m pip install --quiet --no-deps --target "$target" timm "torchvision==$torchvision" spectre-fm loralib
fi
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
PYTHONPATH="tests/ci_timm:$target:tests${PYTHONPATH:+:$PYTHONPATH}" \
    python -m pytest -n 0 -p torchvision_on_cpu -p no_skips -q tests/test_encoders_slices.py \
    tests/test_encoders_contract.py -k "slice or spectre"
