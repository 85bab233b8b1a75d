#!/usr/bin/env bash
# Runs the tests in two processes: bash launch/test.sh [pytest arguments]. --slow includes the slow
# tests, -n 0 runs all in one process. Installs torch, for the checkpoints of other frameworks, and
# libtpu, the TPU compiler of `plan`, as well.
export EXTRAS=dev,convert,plan
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
exec python -m pytest -n 2 "$@"
