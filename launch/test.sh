#!/usr/bin/env bash
# Runs the tests in three processes, as two leave two cores idle a quarter of the time: bash
# launch/test.sh [pytest arguments]. --slow includes the slow tests, -n 0 runs all in one process.
# Installs torch and transformers, for the checkpoints of other frameworks, and libtpu, the TPU
# compiler of `plan`, as well.
export EXTRAS=dev,convert,plan,serve
bash "$(dirname "${BASH_SOURCE[0]}")/browser.sh"
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
# A clean checkout has no compiled modules. Without this every child process compiles its own.
unset PYTHONDONTWRITEBYTECODE
exec python -m pytest -n 3 "$@"
