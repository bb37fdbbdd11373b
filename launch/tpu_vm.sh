#!/usr/bin/env bash
# A run on a Cloud TPU slice, or on several, from a checkout to its last checkpoint.
usage() {
  cat <<'TEXT'
launch/tpu_vm.sh STEP --name NAME --zone ZONE --type TYPE [OPTIONS] [-- ARGUMENTS]

  launch/tpu_vm.sh up --name clip --zone us-west4-a --type v5litepod-16 --spot -- \
      datacomp_medium --data.path 'gs://BUCKET/medium/*.tar' --workdir gs://BUCKET/runs/medium

up is these steps, one after another; each can be typed alone:
  create    ask for the machines, and wait until they are there
  copy      bring this checkout, with what is not committed, onto every host
  install   Python, and the versions of launch/constraints.txt, on every host
  start     start the run on every host, detached; from its last checkpoint if it has one
  watch     until it is finished: start it again where it was preempted or lost a host, on new
            machines where they are gone; say so and stop where starting again would not help
  delete    give the machines back; the workdir stays
and besides:
  logs      follow the first host's output
  status    what the cloud says of the machines, and every host of the run
  stop      have the run save and end; start continues it

ARGUMENTS (up, start, watch) are those of python -m flaxclip.train. A workdir that all hosts see,
such as gs://…, is what lets the run survive its machines.

  --name NAME       of the queued resource, or of the TPU VM
  --zone ZONE
  --type TYPE       accelerator type of one slice, such as v5litepod-16, v6e-256, v5p-128
  --project PROJECT         default: gcloud's
  --runtime VERSION         TPU VM image; default: the one for TYPE
  --slices N                slices, joined by the data centre's network; default 1
  --spot                    cheaper, and preempted at any time
  --on-demand               a TPU VM now or not at all, instead of a place in the queue; one slice
  --restarts N              how often watch starts the run again; default 100
  --poll SECONDS            between two looks; default 30
  --dry-run                 print the commands, run none of them
TEXT
}
set -euo pipefail

fail() { printf 'tpu_vm.sh: %s\n' "$*" >&2; exit 2; }
say() { printf '[%s] %s\n' "$(date +%H:%M:%S)" "$*" >&2; }

step=${1:-help}
[[ $step == -h || $step == --help || $step == help ]] && { usage; exit 0; }
shift
name='' zone='' type='' project='' runtime='' slices=1 spot='' on_demand=''
restarts=100 poll=30 dry_run='' arguments=()
while (($#)); do
  case $1 in
    --spot) spot=1; shift; continue ;;
    --on-demand) on_demand=1; shift; continue ;;
    --dry-run) dry_run=1; shift; continue ;;
    --) shift; arguments=("$@"); break ;;
    --name | --zone | --type | --project | --runtime | --slices | --restarts | --poll) ;;
    *) fail "unknown option $1; see launch/tpu_vm.sh --help" ;;
  esac
  (($# > 1)) || fail "$1 needs a value"
  printf -v "${1#--}" %s "$2"
  shift 2
done
for option in name zone type; do
  [[ -n ${!option} ]] || fail "--$option is missing; see launch/tpu_vm.sh --help"
done
[[ $slices =~ ^[1-9][0-9]*$ ]] || fail "--slices is $slices; it must be 1 or more"
[[ -n $on_demand && $slices != 1 ]] && fail "several slices come from the queue: no --on-demand"
case $step in
  up | start | watch)
    ((${#arguments[@]})) || fail "$step needs arguments of flaxclip.train after --" ;;
esac
# https://cloud.google.com/tpu/docs/runtimes
if [[ -z $runtime ]]; then
  case $type in
    v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
    v5p-*) runtime=v2-alpha-tpuv5 ;;
    v6e-*) runtime=v2-alpha-tpuv6e ;;
    v4-*) runtime=tpu-ubuntu2204-base ;;
    *) fail "which image goes with $type? name it with --runtime" ;;
  esac
fi
where=(--zone "$zone" ${project:+--project "$project"})
if [[ -n $on_demand ]]; then
  tpus=(gcloud compute tpus tpu-vm) everyone=(--worker all)
else
  tpus=(gcloud compute tpus queued-resources) everyone=(--worker all --node all)
fi
checkout=$(cd "$(dirname "$0")/.." && pwd)
cd "$checkout"

call() {
  local word
  if [[ -z $dry_run ]]; then
    "$@"
  else
    for word; do
      [[ $word =~ ^[[:alnum:]_./:=@%+,-]+$ ]] || word=${word@Q}
      printf '%s ' "$word"
    done
    echo
  fi
}

# Hosts that have just been made, or are busy updating themselves, may not answer at once.
insist() {
  local try
  for try in 1 2 3 4 5; do
    call "$@" && return
    say "try $try of 5 failed: ${*:1:6}"
    sleep "$poll"
  done
  return 1
}

scp=("${tpus[@]}" scp "${where[@]}" "${everyone[@]}")
hosts=("${tpus[@]}" ssh "$name" "${where[@]}" "${everyone[@]}" --command)
first_host=("${tpus[@]}" ssh "$name" "${where[@]}" --worker 0 --command)

# READY, WAITING, GONE or UNKNOWN, and in brackets what the cloud itself says.
machines() {
  local answer field=state.state
  [[ -n $on_demand ]] && field=state
  local look=("${tpus[@]}" describe "$name" "${where[@]}" --format "value($field)")
  if [[ -n $dry_run ]]; then
    call "${look[@]}" >&2
    echo READY
  elif answer=$("${look[@]}" 2>&1); then
    answer=${answer##*$'\n'}
    case $answer in
      ACTIVE | READY) echo "READY ($answer)" ;;
      SUSPEND* | FAILED | DELET* | PREEMPTED | TERMINATED) echo "GONE ($answer)" ;;
      *) echo "WAITING ($answer)" ;;
    esac
  elif [[ ${answer,,} == *not_found* || ${answer,,} == *"not found"* ]]; then
    echo "GONE (not found)"
  else
    # A failed question is no answer: machines are not thrown away for it.
    echo "UNKNOWN (${answer##*$'\n'})"
  fi
}

create() {
  local now before='' request=("${tpus[@]}" create "$name" "${where[@]}" --accelerator-type "$type")
  if [[ -n $on_demand ]]; then
    request+=(--version "$runtime")
  elif ((slices > 1)); then
    request+=(--runtime-version "$runtime" --node-count "$slices" --node-prefix "$name")
  else
    request+=(--runtime-version "$runtime" --node-id "$name")
  fi
  call "${request[@]}" ${spot:+--spot} || return
  while now=$(machines); do
    [[ $now != "$before" ]] && say "machines: $now"
    case $now in
      READY*) return 0 ;;
      GONE*) return 1 ;;
    esac
    before=$now
    sleep "$poll"
  done
}

copy() {
  local folder
  folder=$(mktemp -d) || return
  # Ignored files stay here; so do names of files that are deleted and not yet committed so.
  git ls-files -z --cached --others --exclude-standard |
    while IFS= read -r -d '' file; do if [[ -e $file ]]; then printf '%s\0' "$file"; fi; done |
    tar --null --files-from - -czf "$folder/flaxclip.tgz" &&
    cd "$folder" &&
    insist "${scp[@]}" flaxclip.tgz "$name:flaxclip.tgz" &&
    cd "$checkout" && rm -r "$folder" &&
    # runs/ is where a run without a bucket has its workdir.
    insist "${hosts[@]}" "mkdir -p flaxclip && cd flaxclip &&\
 find . -mindepth 1 -maxdepth 1 ! -name runs -exec rm -rf {} + && tar -xzf ../flaxclip.tgz"
}

on_host='bash flaxclip/launch/on_tpu_host.sh'

install() { insist "${hosts[@]}" "$on_host install"; }

start() {
  local quoted
  printf -v quoted ' %q' "${arguments[@]}"
  insist "${hosts[@]}" "$on_host start$quoted"
}

# What the hosts say of the run, each answer once; nothing if no host answers.
exits() {
  if [[ -n $dry_run ]]; then
    call "${hosts[@]}" "$on_host status" >&2
    echo 0
  else
    { "${hosts[@]}" "$on_host status" 2> /dev/null || true; } |
      sed -n 's/.*run=\([a-z0-9]*\).*/\1/p' | sort -u | paste -sd ' '
  fi
}

new_machines() { create && copy && install && start; }

watch() {
  local now run left=$restarts
  while :; do
    now=$(machines)
    if [[ $now == READY* ]]; then run=$(exits); else run=''; fi
    case "${now%% *} $run " in
      GONE*)
        say "machines: $now; asking for new ones"
        ((left-- > 0)) || break
        [[ $now == *"not found"* ]] || delete
        # What is half set up counts as gone.
        new_machines || delete ;;
      "READY 0 ")
        say "the run is finished"
        return ;;
      READY*" 2 "* | READY*" 3 "*)
        call "${first_host[@]}" 'tail -n 40 run.log' || true
        say "the run ended with exit code $run: starting it again would not help"
        say "the machines are still there; to give them back: $0 delete …"
        # Other hosts may be "running" still.
        for code in $run; do [[ $code == [23] ]] && return "$code"; done ;;
      "READY "[0-9a-z]*)
        if [[ " $run " != *" running "* ]]; then
          say "the run ended with exit code $run; starting it again"
          ((left-- > 0)) || break
          start || say "it could not be started"
        fi ;;
    esac
    sleep "$poll"
  done
  say "started again $restarts times: that is enough; see the log"
  return 1
}

status() {
  echo "machines: $(machines)"
  echo "run: $(exits)"
}

logs() { call "${first_host[@]}" 'tail -n 100 -F run.log'; }

stop() { call "${hosts[@]}" "$on_host stop"; }

delete() {
  # --force: with the TPU VMs that it brought.
  if [[ -n $on_demand ]]; then
    call "${tpus[@]}" delete "$name" "${where[@]}" --quiet
  else
    call "${tpus[@]}" delete "$name" "${where[@]}" --force --quiet
  fi
}

case $step in
  up) create; copy; install; start; watch; delete ;;
  create | copy | install | start | watch | logs | status | stop | delete) "$step" ;;
  *) fail "unknown step $step; see launch/tpu_vm.sh --help" ;;
esac
