#!/usr/bin/env bash
# Runs a command on every worker of a TPU slice from the queue (queued resources):
#
#   bash launch/tpu_queued.sh --name=mine --zone=us-east5-a --project=my-project --type=v5p-128 --spot \
#     --workdir=gs://bucket/run -- python -m sphinx_jax.train --config=stage2:13b,1k
#
#   --name      name of the request and of its slice
#   --zone, --project  zone and project of the slice
#   --type      accelerator type, in Google's count: v5p-128 has 64 chips, v5litepod-16 and v6e-16 have 16
#   --version   runtime version; default: the one that fits the type
#   --workdir   passed on to the command; a bucket, because the slice's disks are deleted with it
#   --data      folder of a bucket; copied to data/ on every worker, where the configs expect it
#   --spot      use spot capacity: cheaper, but Google may take it away at any time
#   --keep      do not delete the slice when the command has ended
#   --delete    only delete the request and its slice
#   --dry_run   print every gcloud command and run none
#
# It waits until there is capacity, and makes a new request if the slice is preempted or the request
# fails. Everything else works as in launch/tpu_vm.sh; see its --help.
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
  log "the request failed: $answer"
}

create_slice() {
  log "requesting a ${spot:+spot }$type"
  cloud queued-resources create "$name" --node-id="$name" --accelerator-type="$type" \
    --runtime-version="$version" ${spot:+--spot}
}

delete_slice() { cloud queued-resources delete "$name" --force; }

main "$@"
