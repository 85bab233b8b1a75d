#!/usr/bin/env bash
# The tests, in the environment of launch/local.sh and torch, for checkpoints of others: `bash launch/test.sh [pytest arguments]`.
EXTRAS=dev,convert
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
exec python -m pytest "$@"
