#!/usr/bin/env bash
# Serves the model of launch/local.sh, with a page to try it in a browser: bash launch/demo.sh [flags]
#
#   --workdir=DIR    the directory of the recipe's run (default: workdir/mini)
#   --port=8000      and all other flags of `python -m sphinx_jax.serve`
#
# Stop it with Ctrl-C.
export EXTRAS=serve
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

workdir=workdir/mini
rest=()
for argument in "$@"; do
  case "$argument" in
    --workdir=*) workdir="${argument#--workdir=}" ;;
    --help | -h) sed -n '1d;/^#/!q;s/^# \{0,1\}//p' launch/demo.sh; exit 0 ;;
    *) rest+=("$argument") ;;
  esac
done
if [ ! -d "$workdir/stage2" ]; then
  echo "error: demo: got no $workdir/stage2, expected the model of a finished recipe; run bash launch/local.sh first" >&2
  exit 2
fi
# An image takes 57 positions. Fewer slots and positions than the server's own are compiled sooner.
exec python -m sphinx_jax.serve --checkpoint="$workdir/stage2" --model_name=mini --slots=4 --max_length=512 "${rest[@]}"
