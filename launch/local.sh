#!/usr/bin/env bash
# Runs the whole recipe on this machine: bash launch/local.sh [flags]
#
#   --quick          every step of the recipe with few updates
#   --dataset_files  write and read the data in the file formats of published datasets (COCO, VQAv2, ...)
#   --workdir=DIR    the run's directory (default: workdir/mini, or workdir/ and the flags above)
#   --config.x=y     change a setting of the config
#
# Run the same command again after an interruption: it resumes.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

quick=
files=
files_folder=dataset_files
workdir=
rest=()
for argument in "$@"; do
  case "$argument" in
    --quick) quick=quick ;;
    --dataset_files) files=dataset_files ;;
    --official)
      echo "warning: --official is now --dataset_files" >&2
      files=dataset_files
      files_folder=official ;; # As before, so that runs in this folder resume.
    --workdir=*) workdir="${argument#--workdir=}" ;;
    --help | -h) sed -n '1d;/^#/!q;s/^# \{0,1\}//p' launch/local.sh; exit 0 ;;
    *) rest+=("$argument") ;;
  esac
done
variant="$quick${quick:+${files:+,}}$files"
folder="$quick${quick:+${files:+_}}${files:+$files_folder}"
exec python -m sphinx_jax.recipe --config="mini${variant:+:$variant}" --workdir="${workdir:-workdir/${folder:-mini}}" "${rest[@]}"
