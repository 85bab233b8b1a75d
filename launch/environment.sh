#!/usr/bin/env bash
# Sourced by the other scripts. Changes to the project's root and creates .venv there, once, with the
# pinned versions. EXTRAS names the extras of setup.py to install.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON="${PYTHON:-python3}"
VENV=.venv

if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
  echo "error: python: got $("$PYTHON" --version 2>&1 || true), expected 3.11 or newer; set PYTHON=/path/to/python3.11" >&2
  exit 2
fi

# The stamp holds a hash of what was installed. After a change of setup.py or constraints.txt, or an
# interrupted installation, it differs, and the packages are installed again. An environment
# with more extras, like that of test.sh, serves as well.
EXTRAS="${EXTRAS:-dev}"
wanted="$(cat setup.py constraints.txt | sha256sum | cut -d' ' -f1)"
is_installed() {
  local stamp extra
  for stamp in "$VENV"/installed-*; do
    grep -qsx "$wanted" "$stamp" || continue
    for extra in ${EXTRAS//,/ }; do
      [[ ",${stamp#*/installed-}," == *",$extra,"* ]] || continue 2
    done
    return 0
  done
  return 1
}
if ! is_installed; then
  echo "installing into $VENV (about 700 MB, a minute or two) ..."
  [ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
  "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt --editable ".[$EXTRAS]"
  # pip would compile on one core. What is written for another Python fails, there as well.
  "$VENV/bin/python" -m compileall -qq -j 0 "$VENV/lib" || true
  echo "$wanted" > "$VENV/installed-$EXTRAS"
fi
export PATH="$PWD/$VENV/bin:$PATH"
export TF_CPP_MIN_LOG_LEVEL="${TF_CPP_MIN_LOG_LEVEL:-2}" # Without TensorFlow's messages at start.

# glibc returns freed blocks over 32 MiB to the system at once, and every page of the next one is a
# page fault. With these settings blocks of up to 4 GiB are kept and reused. MALLOC_ARENA_MAX stays
# at its default: XLA compiles in several threads, and takes a quarter longer with one arena.
export MALLOC_MMAP_THRESHOLD_="${MALLOC_MMAP_THRESHOLD_:-4294967296}"
export MALLOC_TRIM_THRESHOLD_="${MALLOC_TRIM_THRESHOLD_:-4294967296}"
