#!/usr/bin/env bash
# Builds an environment in which SGLang runs without a GPU, for the tests of replicas/sglang_engine.
# Argument: the environment's folder. A plain `pip install sglang` would bring CUDA builds instead.
set -euo pipefail
venv=$1
repository=$(cd "$(dirname "$0")/.." && pwd)
cpu=$repository/replicas/sglang_engine/cpu

"${PYTHON:-python3}" -m venv "$venv"
pip() { "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }

# First, and pinned from then on, so that nothing below pulls in another build of torch.
pip "${TORCH:-torch==2.13.0}"
"$venv/bin/python" -c 'import torch; print("torch==" + torch.__version__.split("+")[0])' \
    >"$venv/torch-constraint.txt"
pip --constraint "$venv/torch-constraint.txt" --requirement "$cpu/requirements.txt"
pip --no-deps "sglang==0.5.23" "torchvision==0.28.0"
pip --no-deps --editable "$repository"

# Two stand-ins, each saying in its own words what it is for.
site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
cp "$cpu/sgl_kernel.py" "$cpu/sitecustomize.py" "$site/"
"$venv/bin/python" -c 'import sglang, torchvision, sgl_kernel'
touch "$venv/.ready"
