#!/usr/bin/env bash
# The whole recipe on this machine: `bash launch/local.sh`, or `--quick` for every step with few updates; with
# `--official` the data are written and read as the files of official datasets (COCO, RefCOCO, VQAv2, ...).
# Any --config.x=y passes through; --workdir=DIR says where (default workdir/mini, quick, official or quick_official).
# Run it again after an interruption and it goes on where it was.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

words=()
workdir=
rest=()
for argument in "$@"; do
  case "$argument" in
    --quick) words=(quick "${words[@]}") ;;
    --official) words+=(official) ;;
    --workdir=*) workdir="${argument#--workdir=}" ;;
    --help | -h) sed -n '2,5s/^# //p' launch/local.sh; exit 0 ;;
    *) rest+=("$argument") ;;
  esac
done
argument="$(IFS=,; echo "${words[*]}")"
if [ -z "$workdir" ]; then
  workdir="workdir/${argument/,/_}"
  [ -n "$argument" ] || workdir=workdir/mini
fi
exec python -m sphinx_jax.recipe --config="configs/mini.py${argument:+:$argument}" --workdir="$workdir" "${rest[@]}"
