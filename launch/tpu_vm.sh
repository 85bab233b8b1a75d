#!/usr/bin/env bash
# Runs a command on every worker of one TPU VM slice, which is made for it and deleted after it:
#
#   bash launch/tpu_vm.sh --name=mine --zone=us-east5-a --project=my-project --type=v5p-128 --workdir=gs://bucket/run \
#     -- python -m sphinx_jax.train --config=configs/stage2.py:13b,1k
#
#   --name, --zone, --project  of the slice
#   --type      accelerator type, as Google counts: v5p-128 are 64 chips, v5litepod-16 and v6e-16 are 16
#   --version   runtime version; that of the type if left out
#   --workdir   handed to the command; a bucket, since a slice's disks go with it
#   --data      a bucket's folder, copied to data/ beside the configs on every worker, where they look for it
#   --spot      cheaper, and can be taken away at any time
#   --keep      leaves the slice when the command has ended
#   --delete    only deletes the slice
#   --dry_run   prints every gcloud command and runs none
#
# Each setting can also come from the environment: TPU_NAME, TPU_ZONE, ... The slice gets the last commit, installed with
# the pinned versions. Output is shown with the worker's number and kept in logs/NAME/worker-N.log. A slice that is
# preempted is made again, and a run that was interrupted goes on from its last save; an error to mend ends it. Ctrl-C lets
# the run save before it leaves. Started again, it finds the slice and the run as they are. Keep it in tmux.
# With little capacity take launch/tpu_queued.sh, which waits for it.
source "$(dirname "${BASH_SOURCE[0]}")/tpu.sh"

slice_state() { node_state; }

create_slice() {
  say "creating a ${spot:+spot }$type"
  cloud tpu-vm create "$name" --accelerator-type="$type" --version="$version" ${spot:+--spot}
}

delete_slice() { cloud tpu-vm delete "$name"; }

main "$@"
