#!/usr/bin/env bash
# Runs the tests in three processes, as two leave two cores idle a quarter of the time: bash
# launch/test.sh [pytest arguments]. --slow includes the slow tests, -n 0 runs all in one process.
# Installs torch and transformers, for the checkpoints of other frameworks, and libtpu, the TPU
# compiler of `plan`, as well. Where it can, it installs chromium, with which the server's page is
# tested.
export EXTRAS=dev,convert,plan,serve
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
if ! command -v chromium > /dev/null; then
  echo 'installing chromium ...'
  installed=$(mktemp)
  export DEBIAN_FRONTEND=noninteractive
  if ! { apt-get update && apt-get install -y --no-install-recommends chromium; } &> "$installed"; then
    echo "chromium: $(tail -1 "$installed"); tests/serving/test_page.py is skipped" >&2
  fi
  rm "$installed"
fi
# A clean checkout has no compiled modules. Without this every child process compiles its own.
unset PYTHONDONTWRITEBYTECODE
exec python -m pytest -n 3 "$@"
