#!/usr/bin/env bash
# Sourced by the other scripts: goes to the project's root and makes .venv there, once, with the pinned versions.
# EXTRAS are those of setup.py that the script needs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON="${PYTHON:-python3}"
VENV=.venv

if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
  echo "error: python: got $("$PYTHON" --version 2>&1 || true), expected 3.11 or newer; set PYTHON=/path/to/python3.11" >&2
  exit 2
fi

# The stamp says what was installed: a changed setup.py or constraints.txt, or an interrupted install, installs again.
EXTRAS="${EXTRAS:-dev}"
stamp="$VENV/installed-$EXTRAS"
wanted="$(cat setup.py constraints.txt | sha256sum | cut -d' ' -f1)"
if [ "$(cat "$stamp" 2>/dev/null || true)" != "$wanted" ]; then
  echo "installing into $VENV (about 700 MB, a minute or two) ..."
  [ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
  "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[$EXTRAS]"
  echo "$wanted" > "$stamp"
fi
export PATH="$PWD/$VENV/bin:$PATH"
export TF_CPP_MIN_LOG_LEVEL="${TF_CPP_MIN_LOG_LEVEL:-2}"
