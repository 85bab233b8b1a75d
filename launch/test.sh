#!/usr/bin/env bash
# The tests, in the same environment as launch/local.sh: `bash launch/test.sh [pytest arguments]`.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
exec python -m pytest "$@"
