#!/usr/bin/env bash
# Starts one command as several processes of one run, on this machine.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: launch/local_cluster.sh N [--devices K | --gpus K] [--logs DIR] [--grace S] [--dry-run] -- COMMAND...

Runs COMMAND N times, each with --coordinator, --processes and --process added, so that
the N processes are one run:

  launch/local_cluster.sh 2 --devices 4 -- \
    python -m unipt_jax.main --config=configs/pretrain.py:quickstart --workdir=runs/two

  --devices K   K virtual CPU devices a process
  --gpus K      K GPUs a process, in order (for all GPUs of a machine one process is
                enough, and needs no launcher)
  --logs DIR    where each process's output goes, as 0.log, 1.log ... (a new folder)
  --grace S     when one process fails the others have S seconds to end, then they are
                killed (10)
  --dry-run     print the commands, run none

The output of process 0 is shown, too, each line behind "[0] ". SIGTERM and Ctrl-C reach
the processes as SIGTERM, on which a run saves and ends with 75; a second one kills. The
exit code is that of the first failure, else 75 where one saved and ended, else 0.
TEXT
}

die() {
  echo "local_cluster.sh: $1" >&2
  exit 2
}

whole() { # whole FLAG VALUE: dies unless the value is a whole number from 1
  [[ "$2" =~ ^[1-9][0-9]*$ ]] || die "$1 must be a whole number from 1, not '$2'"
}

processes="" devices="" gpus="" logs="" grace=10 dry=""
while (($#)); do
  case "$1" in
    -h | --help) usage && exit 0 ;;
    --devices | --gpus | --logs | --grace)
      (($# > 1)) || die "$1 needs a value"
      printf -v "${1#--}" %s "$2"
      shift
      ;;
    --devices=* | --gpus=* | --logs=* | --grace=*)
      flag="${1%%=*}"
      printf -v "${flag#--}" %s "${1#*=}"
      ;;
    --dry-run) dry=1 ;;
    --) shift && break ;;
    -*) die "unknown flag $1 (the command comes after --)" ;;
    *)
      [[ -z "$processes" ]] || die "unexpected '$1' (the command comes after --)"
      processes="$1"
      ;;
  esac
  shift
done
[[ -n "$processes" ]] || die "how many processes? See --help"
whole "the number of processes" "$processes"
[[ -z "$devices" ]] || whole --devices "$devices"
[[ -z "$gpus" ]] || whole --gpus "$gpus"
whole --grace "$grace"
[[ -z "$devices" || -z "$gpus" ]] || die "--devices (of the CPU) and --gpus exclude each other"
(($#)) || die "no command: give it after --"

free_port() { # one below those that systems hand out by themselves
  local port
  while :; do
    port=$((20000 + RANDOM % 12000))
    (: <"/dev/tcp/localhost/$port") 2>/dev/null || break
  done
  echo "$port"
}

command_of() { # command_of I ARGS...: fills `line`, the command of process I
  local i="$1"
  shift
  line=(env PYTHONUNBUFFERED=1)
  [[ -z "$devices" ]] || line+=(JAX_PLATFORMS=cpu "JAX_NUM_CPU_DEVICES=$devices")
  [[ -z "$gpus" ]] || line+=("CUDA_VISIBLE_DEVICES=$(seq -s, $((i * gpus)) $((i * gpus + gpus - 1)))")
  line+=("$@" "--coordinator=localhost:$port" "--processes=$processes" "--process=$i")
}

port="$(free_port)"
if [[ -n "$dry" ]]; then
  for ((i = 0; i < processes; i++)); do
    command_of "$i" "$@"
    printf '%q ' "${line[@]}"
    echo
  done
  exit 0
fi
[[ -n "$logs" ]] || logs="$(mktemp -d "${TMPDIR:-/tmp}/local_cluster.XXXXXX")"
mkdir -p "$logs"
echo "local_cluster.sh: $processes processes at localhost:$port, logs in $logs" >&2

set -m # each process leads a group of its own, which Ctrl-C does not reach by itself
pids=() asked=0
signal_all() { # signal_all NAME: to each that still runs; KILL takes its children along
  local pid
  for pid in "${pids[@]}"; do
    if [[ "$1" == KILL ]]; then pid="-$pid"; fi
    kill -s "$1" -- "$pid" 2>/dev/null || true
  done
}
# shellcheck disable=SC2329 # the trap below calls it
stop() {
  asked=$((asked + 1))
  if ((asked == 1)); then signal_all TERM; else signal_all KILL; fi
}
trap stop TERM INT

for ((i = 0; i < processes; i++)); do
  command_of "$i" "$@"
  "${line[@]}" >"$logs/$i.log" 2>&1 </dev/null &
  pids+=("$!")
done
tail -n +1 -s 0.2 -f --pid="${pids[0]}" "$logs/0.log" 2>/dev/null | sed -u 's/^/[0] /' &
shown="$!"

running=$processes first=0 saved=0 deadline=""
trap '((running == 0)) || signal_all KILL' EXIT
codes=()
while ((running)); do
  for ((i = 0; i < processes; i++)); do
    if [[ -n "${codes[$i]:-}" ]] || kill -0 "${pids[$i]}" 2>/dev/null; then continue; fi
    codes[i]=0
    wait "${pids[$i]}" 2>/dev/null || codes[i]=$?
    running=$((running - 1))
    case "${codes[$i]}" in
      0) ;;
      75) saved=75 ;;
      *)
        if ((first == 0)); then
          first="${codes[$i]}" deadline=$((SECONDS + grace))
          echo "local_cluster.sh: process $i ended with ${codes[$i]}; see $logs/$i.log" >&2
          ((i == 0)) || tail -n 3 "$logs/$i.log" | sed "s/^/[$i] /" >&2
        fi
        ;;
    esac
  done
  if [[ -n "$deadline" ]] && ((SECONDS >= deadline)); then signal_all KILL; fi
  sleep 0.2 || true
done
wait "$shown" 2>/dev/null || true
exit $((first ? first : saved))
