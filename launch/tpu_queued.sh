#!/usr/bin/env bash
# As launch/tpu_vm.sh, with a slice from the queue (queued resources): waits until there is capacity, and stands in line
# again when the slice is preempted or the request fails. Settings and behaviour are those of launch/tpu_vm.sh:
#
#   bash launch/tpu_queued.sh --name=mine --zone=us-east5-a --project=my-project --type=v5p-128 --spot \
#     --workdir=gs://bucket/run -- python -m sphinx_jax.train --config=configs/stage2.py:13b,1k
#
#   --name, --zone, --project  of the request and of its slice
#   --type      accelerator type, as Google counts: v5p-128 are 64 chips, v5litepod-16 and v6e-16 are 16
#   --version   runtime version; that of the type if left out
#   --workdir   handed to the command; a bucket, since a slice's disks go with it
#   --data      a bucket's folder, copied to data/ beside the configs on every worker, where they look for it
#   --spot      cheaper, and can be taken away at any time
#   --keep      leaves the slice when the command has ended
#   --delete    only deletes the request and its slice
#   --dry_run   prints every gcloud command and runs none
source "$(dirname "${BASH_SOURCE[0]}")/tpu.sh"

# https://cloud.google.com/tpu/docs/queued-resources lists the states of a request.
slice_state() {
  describe queued-resources state.state
  case "$answer" in
    ACTIVE | '')
      node_state
      [ "$state_now" != missing ] || state_now=preempted ;; # The request outlives its slice.
    SUSPENDED) state_now=preempted ;;
    FAILED) state_now=failed; explain ;;
    missing | unknown) state_now="$answer" ;;
    *) state_now=waiting ;;
  esac
}

explain() {
  describe queued-resources state.failedData.error.message
  say "the request failed: $answer"
}

create_slice() {
  say "asking for a ${spot:+spot }$type"
  cloud queued-resources create "$name" --node-id="$name" --accelerator-type="$type" \
    --runtime-version="$version" ${spot:+--spot}
}

delete_slice() { cloud queued-resources delete "$name" --force; }

main "$@"
