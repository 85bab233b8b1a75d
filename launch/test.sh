#!/usr/bin/env bash
# The tests, in the environment of launch/local.sh and more: torch, for checkpoints of others, and the
# compiler of TPUs, for `plan`: `bash launch/test.sh [pytest arguments]`.
export EXTRAS=dev,convert,plan
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
exec python -m pytest "$@"
