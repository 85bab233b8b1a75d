#!/usr/bin/env bash
# Runs on a worker of a TPU slice, for launch/tpu.sh: `install`, `run COMMAND...`, or `stop` the command.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
pid_file="$PWD/.venv/run.pid"

newer_python() { # Images of TPU VMs have Python 3.10. If there is no newer one, uv installs it.
  local candidate
  for candidate in .venv/bin/python python3 python3.13 python3.12 python3.11; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; then echo "$candidate"; return; fi
  done
  python3 -m pip install --user --quiet uv >&2
  python3 -m uv python install --quiet 3.11 >&2
  python3 -m uv python find 3.11
}

stop() { # SIGTERM lets the run save. If it does not exit in time, it is killed with its children.
  local pid
  pid="$(cat "$pid_file" 2> /dev/null || true)"
  # Another process may have this id by now. Ours has the commit in its environment.
  if [ -z "$pid" ] || ! grep -qz '^SPHINX_JAX_COMMIT=' "/proc/$pid/environ" 2> /dev/null; then return; fi
  kill -TERM "$pid" 2> /dev/null || true
  timeout "${SPHINX_JAX_STOP_SECONDS:-300}" tail --pid="$pid" --sleep-interval=0.2 -f /dev/null || true
  kill -KILL -- "-$pid" 2> /dev/null || true
}

case "${1:-}" in
  install | run)
    PYTHON="$(newer_python)"
    export EXTRAS=tpu PYTHON
    source launch/environment.sh ;;&
  run)
    shift
    stop # A run that a lost ssh connection left behind.
    set -m # A process group of its own.
    "$@" < /dev/null &
    echo $! > "$pid_file"
    code=0
    wait $! || code=$? # 128 + the signal, if one killed it.
    # By this line launch/tpu.sh distinguishes the code from gcloud's own. It restarts the command on
    # some codes; see `supervise` there.
    printf '\nexit code %s\n' "$code"
    exit "$code" ;;
  stop) stop ;;
  install) ;;
  *) echo "error: launch/worker.sh: got '${1:-}', expected install, run or stop; launch/tpu_vm.sh calls it" >&2; exit 2 ;;
esac
