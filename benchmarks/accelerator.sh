#!/usr/bin/env bash
# Measures this project on the accelerator of this machine: bash benchmarks/accelerator.sh --output=DIR
# --help lists the parts and the flags. It takes the python3 on PATH (or $PYTHON) if that has all
# packages, and installs them into .venv otherwise, with JAX for CUDA if there is an NVIDIA GPU.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON="${PYTHON:-python3}"
if ! "$PYTHON" -c 'import pytest, sphinx_jax.configs, sphinx_jax.run' 2> /dev/null; then
  if command -v nvidia-smi > /dev/null; then export EXTRAS=dev,cuda; fi
  source launch/environment.sh
  PYTHON=python
fi
exec "$PYTHON" -m benchmarks.accelerator "$@"
