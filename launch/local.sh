#!/usr/bin/env bash
# The whole recipe on this machine: `bash launch/local.sh`, or `--quick` for every step with few updates.
# Any --config.x=y passes through; --workdir=DIR says where (default workdir/mini or workdir/quick).
# Run it again after an interruption and it goes on where it was.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

config=configs/mini.py
workdir=
rest=()
for argument in "$@"; do
  case "$argument" in
    --quick) config=configs/mini.py:quick ;;
    --workdir=*) workdir="${argument#--workdir=}" ;;
    --help | -h) sed -n '2,4s/^# //p' launch/local.sh; exit 0 ;;
    *) rest+=("$argument") ;;
  esac
done
if [ -z "$workdir" ]; then
  case "$config" in *:quick) workdir=workdir/quick ;; *) workdir=workdir/mini ;; esac
fi
exec python -m sphinx_jax.recipe --config="$config" --workdir="$workdir" "${rest[@]}"
