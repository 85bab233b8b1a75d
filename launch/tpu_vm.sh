#!/usr/bin/env bash
# Creates a TPU VM slice, runs a command on every worker and deletes the slice:
#
#   bash launch/tpu_vm.sh --name=mine --zone=us-east5-a --project=my-project --type=v5p-128 \
#     --workdir=gs://bucket/run -- python -m sphinx_jax.train --config=stage2:13b,1k
#
#   --name      name of the slice
#   --zone, --project  its zone and project
#   --type      accelerator type, in Google's count: v5p-128 has 64 chips, v5litepod-16 and v6e-16 have 16
#   --version   runtime version; default: the one that fits the type
#   --workdir   passed on to the command; a bucket, because the slice's disks are deleted with it
#   --data      folder of a bucket; copied to data/ on every worker, where the configs expect it
#   --spot      use spot capacity: cheaper, but Google may take it away at any time
#   --keep      do not delete the slice when the command has ended
#   --delete    only delete the slice
#   --dry_run   print every gcloud command and run none
#
# Each setting can also be an environment variable: TPU_NAME, TPU_ZONE, ... The slice gets the last
# commit of this repository, with the pinned versions. The output is shown with the worker's number
# and kept in logs/NAME/worker-N.log. A preempted slice is created again, and an interrupted run
# resumes from its last save. An error that a restart cannot fix ends the script. Ctrl-C lets the run
# save first. Started again, the script finds the slice and the run. Run it in tmux.
# If there is little capacity use launch/tpu_queued.sh, which waits for it.
source "$(dirname "${BASH_SOURCE[0]}")/tpu.sh"

slice_state() { node_state; }

create_slice() {
  log "creating a ${spot:+spot }$type"
  cloud tpu-vm create "$name" --accelerator-type="$type" --version="$version" ${spot:+--spot}
}

delete_slice() { cloud tpu-vm delete "$name"; }

main "$@"
