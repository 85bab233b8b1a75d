#!/usr/bin/env bash
# Sourced by tpu_vm.sh and tpu_queued.sh, which define create_slice, slice_state and delete_slice. The
# rest is here: settings, installing, running on every worker, restarting, deleting. It also runs in
# bash 3.2, the bash of macOS. These settings come from the environment:
poll="${TPU_POLL:-15}"                     # Seconds between two checks of a slice or of the workers.
look_seconds="${TPU_LOOK_SECONDS:-60}"     # Seconds between two checks of the slice while the command runs.
quick_seconds="${TPU_QUICK_SECONDS:-600}"  # A run that fails within this time is a quick failure.
quick_failures="${TPU_QUICK_FAILURES:-5}"  # The script gives up after this many quick failures in a row.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

script="launch/$(basename "$0")"
settings='--name= --zone= --project= --type= --version= --workdir= --data= --spot --keep --delete --dry_run'
workers=1      # Hosts of the slice.
installed=     # Set when the workers have the code of `commit`.
running=       # Set while they run the command.
state_now=     # Result of slice_state: missing, waiting, ready, preempted, failed or unknown.

log() {
  if [ -n "$dry_run" ]; then printf '# %s\n' "$*" >&3; else printf '%s %s: %s\n' "$(date +%H:%M:%S)" "$name" "$*" >&2; fi
}

die() { # Exits with an error: who, got, expected, what to do.
  printf 'error: %s: got %s, expected %s; %s\n' "$1" "$2" "$3" "$4" >&2
  exit 2
}

# shellcheck disable=SC2034 # create_slice reads `spot`.
read_settings() { # From the command line; missing ones from the environment.
  name="${TPU_NAME:-}" zone="${TPU_ZONE:-}" project="${TPU_PROJECT:-}" type="${TPU_TYPE:-}" version="${TPU_VERSION:-}"
  workdir="${TPU_WORKDIR:-}" data="${TPU_DATA:-}" spot="${TPU_SPOT:-}" keep='' delete='' dry_run=''
  command=()
  while [ $# -gt 0 ]; do
    case "$1" in
      --name=*) name="${1#*=}" ;;
      --zone=*) zone="${1#*=}" ;;
      --project=*) project="${1#*=}" ;;
      --type=*) type="${1#*=}" ;;
      --version=*) version="${1#*=}" ;;
      --workdir=*) workdir="${1#*=}" ;;
      --data=*) data="${1#*=}" ;;
      --spot) spot=1 ;;
      --keep) keep=1 ;;
      --delete) delete=1 ;;
      --dry_run) dry_run=1 ;;
      --help | -h) sed -n '1d;/^#/!q;s/^# \{0,1\}//p' "$script"; exit 0 ;;
      --) shift; command=("$@"); break ;;
      *) die "$script" "'$1'" "one of $settings" 'check the spelling, and write the command to run after --' ;;
    esac
    shift
  done
}

check_settings() {
  local setting missing='' wanted='name zone project'
  [ -n "$delete" ] || wanted="$wanted type"
  for setting in $wanted; do [ -n "${!setting}" ] || missing="$missing --$setting="; done
  [ -z "$missing" ] || die "$script" "no$missing" 'a value for each' \
    'give them as flags, or TPU_NAME, TPU_ZONE and so on in the environment; see --help'
  [ -z "$delete" ] || return 0
  [ ${#command[@]} -gt 0 ] || die "$script" 'no command' 'one after --' \
    "end with: -- python -m sphinx_jax.train --config=stage2:13b,1k"
  [ -n "$version" ] || default_version
  case "$data" in
    '' | gs://?*) ;;
    *) die "$script" "--data='$data'" 'gs://BUCKET/FOLDER' "the slice cannot read this machine's files: copy it to a bucket" ;;
  esac
  case "$workdir" in
    gs://?*) command+=("--workdir=$workdir") ;;
    '') case " ${command[*]} " in
          *" --workdir=gs://"*) ;;
          *sphinx_jax.train* | *sphinx_jax.recipe* | *" --workdir="*)
            die "$script" 'no --workdir=gs://...' 'a bucket, which outlives the slice' \
              'give --workdir=gs://BUCKET/RUN before the --; it is passed on to the command' ;;
        esac ;;
    *) die "$script" "--workdir='$workdir'" 'gs://BUCKET/RUN' "the slice's own disk is deleted with the slice" ;;
  esac
}

default_version() { # https://cloud.google.com/tpu/docs/runtimes
  case "$type" in
    v6e-*) version=v2-alpha-tpuv6e ;;
    v5p-*) version=v2-alpha-tpuv5 ;;
    v5litepod-*) version=v2-alpha-tpuv5-lite ;;
    v4-* | v3-* | v2-*) version=tpu-ubuntu2204-base ;;
    *) die '--type' "'$type'" 'v2-N, v3-N, v4-N, v5litepod-N (that is v5e), v5p-N or v6e-N' \
         "give --version= as well for another type ('gcloud compute tpus accelerator-types list' lists those of a zone)" ;;
  esac
}

cloud() { # Runs `gcloud compute tpus ...` in our zone and project; --dry_run only prints it.
  set -- gcloud compute tpus "$@" --zone="$zone" --project="$project" --quiet
  if [ -z "$dry_run" ]; then "$@"; return; fi
  local part line=''
  for part in "$@"; do
    case "$part" in *[!A-Za-z0-9_./:=,-]*) part="'$(printf %s "$part" | sed "s/'/'\\\\''/g")'" ;; esac
    line="$line $part"
  done
  printf '%s\n' "${line# }" >&3
}

describe() { # Sets `answer` to one field of a resource (tpu-vm or queued-resources), or to `missing` or `unknown`.
  if answer="$(cloud "$1" describe "$name" --format="value($2)" 2> "$scratch/complaint")"; then return; fi
  if grep -qi 'not.found' "$scratch/complaint"; then answer=missing; return; fi
  cat "$scratch/complaint" >&2
  answer=unknown
}

node_state() { # Sets state_now of a slice; states: https://cloud.google.com/tpu/docs/reference/rest/v2/projects.locations.nodes
  describe tpu-vm state
  case "$answer" in
    READY) state_now=ready ;;
    PREEMPTED | TERMINATED | STOPPED | HIDDEN) state_now=preempted ;;
    missing | unknown) state_now="$answer" ;;
    *) state_now=waiting ;;
  esac
}

pause() { sleep "$poll" & wait $! || true; } # In the background, because traps wait for foreground commands.

have_slice() { # Waits until the slice is ready; a lost one is created again. Sets `workers`.
  local tries=0 before=
  if [ -n "$dry_run" ]; then
    slice_state
    create_slice
    slice_state
    describe tpu-vm 'networkEndpoints[].ipAddress'
    return
  fi
  while :; do
    slice_state
    [ "$state_now" = "$before" ] || log "the slice is $state_now"
    before="$state_now"
    case "$state_now" in
      ready)
        describe tpu-vm 'networkEndpoints[].ipAddress'
        if [ "$answer" != unknown ]; then break; fi ;;
      waiting) pause; continue ;;
      preempted) installed=; if delete_slice; then continue; fi ;;
      missing) installed=; if create_slice; then continue; fi ;;
      failed) installed=; delete_slice || true ;;
    esac
    tries=$((tries + 1))
    [ "$tries" -lt "$quick_failures" ] ||
      finish 1 "no slice after $tries tries; gcloud's messages are above (no capacity? launch/tpu_queued.sh waits for it)"
    pause
  done
  workers="$(printf %s "$answer" | tr ';,' '\n' | grep -c .)" || workers=1
}

relay() { # Prints the output of a worker with its number before each line, and writes it to its log.
  local line
  while IFS= read -r line || [ -n "$line" ]; do
    printf '[%s] %s\n' "$1" "$line"
    printf '%s\n' "$line" >&4
  done 4>> "logs/$name/worker-$1.log"
}

on_worker() { # Runs a shell command ($3) on worker $2; the label ($1) is that of `everywhere`.
  # With these options ssh notices a dead connection. Without them gcloud waits for a lost host.
  local alive=-oServerAliveInterval=30 patient=-oConnectTimeout=20
  if [ "$1" = install ]; then
    cloud tpu-vm scp "$archive" "$name:sphinx_jax.tar.gz" --worker="$2" --scp-flag="$patient" || return
  fi
  cloud tpu-vm ssh "$name" --worker="$2" --ssh-flag="$alive" --ssh-flag="$patient" --command="$3" < /dev/null
}

everywhere() { # Starts a shell command ($2) on every worker; `codes $1` has the results. (--worker=all mixes the output.)
  local worker
  if [ -n "$dry_run" ]; then
    on_worker "$1" 0 "$2"
    log 'the same for every other worker (--worker=1, ...)'
    return
  fi
  rm -f "$scratch/$1".*
  for ((worker = 0; worker < workers; worker++)); do
    set -m # A process group for each: Ctrl-C does not reach it, and hang_up can end it.
    (
      set +e
      on_worker "$1" "$worker" "$2" 2>&1 | relay "$worker"
      code=${PIPESTATUS[0]}
      # gcloud returns 1 if it cannot connect. worker.sh prints the code of the command as well.
      if [ "$1.$code" = run.1 ] && [ "$(tail -n 1 "logs/$name/worker-$worker.log")" != 'exit code 1' ]; then code=255; fi
      echo "$worker $code" > "$scratch/part.$1.$worker"
      mv "$scratch/part.$1.$worker" "$scratch/$1.$worker"
    ) &
    set +m
  done
}

hang_up() { # Ends the open connections to workers.
  local client
  for client in $(jobs -pr); do kill -TERM -- "-$client" 2> /dev/null || true; done
}

codes() { cat "$scratch/$1".* 2> /dev/null || true; } # Lines `worker code` of the workers that ended.

ended() { [ -n "$dry_run" ] || [ "$(codes "$1" | grep -c .)" -ge "$workers" ]; }

verdict() { # Picks the exit code of one worker for all: the one that decides what to do next.
  local code
  for code in 2 130 75 134 143 137 255 '[1-9][0-9]*'; do
    if grep -q " $code\$" <<< "$1"; then grep -m 1 -o "$code\$" <<< "$1"; return; fi
  done
  echo 0
}

on_all() { # Runs a shell command ($2) on every worker and waits for the end; returns the verdict.
  everywhere "$1" "$2"
  until ended "$1"; do pause; done
  return "$(verdict "$(codes "$1")")"
}

install() { # Copies the commit to every worker, installs it there, and fetches the data.
  local fetch=''
  [ -z "$data" ] || fetch=" && gcloud storage rsync --recursive $(printf %q "$data") data"
  archive="$scratch/sphinx_jax.tar.gz"
  # Without the tests, which are most of the bytes.
  [ -n "$dry_run" ] || git archive --format=tar.gz --output="$archive" "$commit" -- . ':(exclude)tests'
  log "installing commit ${commit:0:10}"
  on_worker first 0 true || return 255 # The very first connection creates the key pair; several at once would clash.
  on_all install "mkdir -p sphinx_jax && cd sphinx_jax && { [ ! -f launch/worker.sh ] || bash launch/worker.sh stop; } \
&& find . -mindepth 1 -maxdepth 1 ! -name .venv ! -name data -exec rm -rf {} + && tar -xzf ../sphinx_jax.tar.gz \
&& bash launch/worker.sh install$fetch"
}

stop() { # Sends SIGTERM to the command on every worker, and waits until it has saved and ended.
  on_all stop 'cd sphinx_jax && bash launch/worker.sh stop' || log 'could not stop the command on every worker'
  until ended run; do pause; done
}

lost() { # Whether the slice is gone. Checked now and then, because connections to a lost host fail late.
  if [ $((SECONDS - looked)) -lt "$look_seconds" ]; then return 1; fi
  looked=$SECONDS
  slice_state
  case "$state_now" in preempted | missing | failed) ;; *) return 1 ;; esac
}

run() { # Runs the command on every worker; stops all as soon as one fails. Returns the verdict.
  local first code
  log "running; output of worker N goes to logs/$name/worker-N.log"
  running=1 looked=$SECONDS
  everywhere run "cd sphinx_jax && SPHINX_JAX_DISTRIBUTED=1 SPHINX_JAX_COMMIT=$commit bash launch/worker.sh run\
$(printf ' %q' "${command[@]}")"
  if [ -n "$dry_run" ]; then return; fi
  until ended run || [ "$(verdict "$(codes run)")" != 0 ] || lost; do pause; done
  # Other workers may end for the same reason, with a clearer code. Codes after `stop` do not count.
  ended run || pause
  first="$(codes run)"
  code="$(verdict "$first")"
  if ! ended run; then
    slice_state
    if [ "$state_now" = ready ]; then
      log "worker $(grep -m 1 -v ' 0$' <<< "$first" | sed 's/ / ended with /'); stopping the others"
      stop
    fi
    [ "$code" != 0 ] || code=255
  fi
  hang_up
  running=
  return "$code"
}

tear_down() {
  if [ -n "$keep" ]; then
    log "the slice stays and costs money; this deletes it:" \
      "bash $script --name=$name --zone=$zone --project=$project --delete"
    return
  fi
  log 'deleting the slice'
  delete_slice || log 'the slice could not be deleted; delete it by hand'
}

finish() { # Ends the script with an exit code ($1) and the reason ($2).
  trap - INT TERM # A second Ctrl-C ends the script at once.
  log "$2"
  [ -z "$running" ] || stop
  tear_down
  exit "$1"
}

supervise() { # Runs the command until it finishes, on as many slices as needed.
  local began code failures=0
  while :; do
    have_slice
    began=$SECONDS code=0
    if [ -z "$installed" ]; then install || code=$?; fi
    if [ "$code" = 0 ]; then installed=1; run || code=$?; fi
    case "$code" in
      0) finish 0 'finished' ;;
      2) finish 2 'an error that a restart cannot fix; see the last lines above' ;;
      130) finish 130 'stopped by Ctrl-C on a worker; the same command resumes from the last save' ;;
    esac
    slice_state
    if [ "$state_now" != ready ]; then log "the slice is $state_now; creating it again"; continue; fi
    if [ -n "$installed" ]; then
      case "$code" in
        # 75, 134: another process is gone (parallel/hosts.py; 134 is jax's abort). 137: killed.
        # 143: SIGTERM. 255: no connection.
        75 | 134 | 137 | 143 | 255) ;;
        *) finish "$code" "the command failed with exit code $code; see the last lines above" ;;
      esac
    fi
    [ $((SECONDS - began)) -lt "$quick_seconds" ] || failures=0
    failures=$((failures + 1))
    [ "$failures" -lt "$quick_failures" ] ||
      finish "$code" "$failures failures, each within $quick_seconds s of its start; the last exit code was $code"
    log "exit code $code; restarting from the last save ($failures of $quick_failures quick failures)"
    pause
  done
}

main() {
  local changed
  read_settings "$@"
  check_settings
  exec 3>&1
  scratch="$(mktemp -d)"
  trap 'hang_up; rm -rf "$scratch"' EXIT
  if [ -n "$delete" ]; then delete_slice; return; fi
  if [ -z "$dry_run" ] && ! command -v gcloud > /dev/null; then
    die gcloud 'no such program on the PATH' 'the Google Cloud CLI' 'install it: https://cloud.google.com/sdk/docs/install'
  fi
  commit="$(git rev-parse HEAD 2> /dev/null)" ||
    die "$script" 'no git repository' 'a clone' 'run it in a clone: the slice gets its last commit'
  changed="$(git status --porcelain | grep -c .)" || true
  [ "$changed" = 0 ] || log "warning: $changed changed or new file(s) are not sent; the slice gets commit ${commit:0:10}"
  if [ -n "$dry_run" ]; then
    have_slice
    install
    run
    log 'when a worker fails, or on Ctrl-C'
    everywhere stop 'cd sphinx_jax && bash launch/worker.sh stop'
    tear_down
    return
  fi
  mkdir -p "logs/$name"
  trap 'finish 130 "Ctrl-C: stopping (press it again to end at once)"' INT
  trap 'finish 143 "SIGTERM: stopping"' TERM
  supervise
}
