#!/usr/bin/env bash
# Trains on a Cloud TPU slice: creates it, installs, starts on all its hosts, watches.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: launch/tpu_vm.sh ACTION [options] [-- COMMAND...]

  create      the slice, or waits for the one of that name; one that was preempted is
              deleted and made anew
  install     copies what git tracks here to all hosts, and installs it there
  run         starts COMMAND on all hosts; it goes on when this connection is lost
  logs        follows the output of one host until the run has ended
  status      the slice's state, and each host's
  stop        SIGTERM to the run: it saves and ends
  delete      the slice, and its queued resource
  up          create, install, run, logs
  supervise   up to the end: makes the slice anew when it was preempted, and starts the
              same COMMAND, which goes on from its last checkpoint on gs://

  --name NAME      the slice (TPU_NAME)
  --zone ZONE      (TPU_ZONE, or gcloud's compute/zone)
  --project ID     (TPU_PROJECT, or gcloud's core/project)
  --type TYPE      accelerator type (TPU_TYPE, v5litepod-16)
  --version V      runtime version (TPU_VERSION, v2-alpha-tpuv5-lite)
  --queued         asks by a queued resource, which waits until there is capacity
  --spot           cheaper, and preempted when others need it
  --data gs://...  a record set, which install copies to data/ on each host (records
                   are read from disks); may be given several times
  --worker N       the host whose output `logs` follows (0)
  --dry-run        prints every command that it would run, runs none

  launch/tpu_vm.sh supervise --name persons --zone us-west4-a --queued --spot \
    --data gs://BUCKET/luperson -- \
    python -m unipt_jax.main --config=configs/pretrain.py:paper \
    --workdir=gs://BUCKET/runs/paper --config.data.records=data/luperson \
    --config.data.captions=data/luperson/captions

COMMAND runs in the copy of the repository, with its Python first on PATH. For slices of
several hosts gcloud wants the key in the agent: ssh-add ~/.ssh/google_compute_engine
TEXT
}

die() {
  echo "tpu_vm.sh: $1" >&2
  exit "${2:-2}"
}

say() { echo "tpu_vm.sh: $*" >&2; }

# --- what is asked for ---------------------------------------------------------------

name="${TPU_NAME:-}" zone="${TPU_ZONE:-}" project="${TPU_PROJECT:-}"
type="${TPU_TYPE:-v5litepod-16}" version="${TPU_VERSION:-v2-alpha-tpuv5-lite}"
queued="" spot="" worker=0 dry="" action="" data=()
pause="${TPU_POLL_SECONDS:-30}" # between two looks at the slice

while (($#)); do
  case "$1" in
    -h | --help) usage && exit 0 ;;
    --name | --zone | --project | --type | --version | --worker)
      (($# > 1)) || die "$1 needs a value"
      printf -v "${1#--}" %s "$2"
      shift
      ;;
    --name=* | --zone=* | --project=* | --type=* | --version=* | --worker=*)
      flag="${1%%=*}"
      printf -v "${flag#--}" %s "${1#*=}"
      ;;
    --data)
      (($# > 1)) || die "$1 needs a value"
      data+=("$2")
      shift
      ;;
    --data=*) data+=("${1#*=}") ;;
    --queued) queued=1 ;;
    --spot) spot=--spot ;;
    --dry-run) dry=1 ;;
    --) shift && break ;;
    -*) die "unknown flag $1; see --help (the command comes after --)" ;;
    *)
      [[ -z "$action" ]] || die "unexpected '$1' (the command comes after --)"
      action="$1"
      ;;
  esac
  shift
done
case "$action" in
  run | up | supervise) (($#)) || die "$action needs the command to run, after --" ;;
  create | install | logs | status | stop | delete) (($# == 0)) || die "$action takes no command" ;;
  "") die "no action; see --help" ;;
  *) die "unknown action '$action'; see --help" ;;
esac
command=("$@")
for set in ${data[@]+"${data[@]}"}; do
  [[ "$set" == gs://*/* ]] || die "--data must be gs://BUCKET/FOLDER, not '$set'"
done

[[ -n "$name" ]] || die "no name for the slice; give --name"
if [[ -z "$dry" ]]; then
  command -v gcloud >/dev/null || die "no gcloud on PATH; install the Google Cloud CLI and run: gcloud init"
  [[ -n "$zone" ]] || zone="$(gcloud config get-value compute/zone 2>/dev/null || true)"
  [[ -n "$project" ]] || project="$(gcloud config get-value core/project 2>/dev/null || true)"
fi
[[ -n "$zone" && "$zone" != "(unset)" ]] || die "no zone; give --zone, such as us-west4-a"
[[ -n "$project" && "$project" != "(unset)" ]] || die "no project; give --project"
where=("--zone=$zone" "--project=$project")

# --- gcloud --------------------------------------------------------------------------

run() { # run COMMAND...: or print it
  if [[ -n "$dry" ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

vm() { # vm VERB ARGS...: of the slice
  local verb="$1"
  shift
  run gcloud compute tpus tpu-vm "$verb" "$name" "${where[@]}" "$@"
}

queue() { # queue VERB ARGS...: of its queued resource, which has the same name
  local verb="$1"
  shift
  run gcloud compute tpus queued-resources "$verb" "$name" "${where[@]}" "$@"
}

patiently() { # patiently COMMAND...: three times, since connections break
  local try code
  for try in 1 2 3; do
    code=0
    "$@" || code=$?
    # 3 and 4 are answers of our own remote scripts, not of the connection.
    if ((code == 0 || code == 3 || code == 4)); then return "$code"; fi
    ((try == 3)) || { say "failed with $code; tries again" && sleep "$pause"; }
  done
  return "$code"
}

on_all() { # on_all SCRIPT: runs a bash script on all hosts
  patiently vm ssh --worker=all "--command=$1"
}

state_of() { # state_of vm|queue: its state, or MISSING
  local answer="" field="state" errors code=0
  [[ "$1" == vm ]] || field="state.state"
  errors="$(mktemp)"
  answer="$("$1" describe "--format=value($field)" 2>"$errors")" || code=1
  if ((code)) && grep -q NOT_FOUND "$errors"; then answer=MISSING code=0; fi
  ((code == 0)) || cat "$errors" >&2
  rm -f "$errors"
  echo "$answer"
  return "$code"
}

# --- the slice -----------------------------------------------------------------------

create_vm() {
  say "creates $type '$name' in $zone"
  vm create "--accelerator-type=$type" "--version=$version" ${spot:+"$spot"}
}

create_queued() {
  say "queues for $type '$name' in $zone"
  queue create "--node-id=$name" "--accelerator-type=$type" \
    "--runtime-version=$version" ${spot:+"$spot"}
}

delete_all() {
  if [[ -n "$queued" ]]; then queue delete --force --quiet; else vm delete --quiet; fi
}

ensure() { # until the slice is ready; fails where gcloud fails
  if [[ -n "$dry" ]]; then
    if [[ -n "$queued" ]]; then
      queue describe "--format=value(state.state)"
      create_queued
    fi
    vm describe "--format=value(state)"
    [[ -n "$queued" ]] || create_vm
    return
  fi
  local request node asked="" before="" now
  while :; do
    request="" node=""
    if [[ -n "$queued" ]]; then request="$(state_of queue)" || return 1; fi
    if [[ -z "$request" || "$request" == ACTIVE ]]; then node="$(state_of vm)" || return 1; fi
    now="$request${request:+${node:+, }}$node"
    [[ "$now" == "$before" ]] || say "$name: $now"
    before="$now"
    case "$request/$node" in
      */READY) return ;;
      MISSING/) create_queued || return 1 && asked=1 ;;
      /MISSING) create_vm || return 1 ;;
      /STOPPED) vm start || return 1 ;;
      FAILED/)
        [[ -z "$asked" ]] || die "the request failed; why, tells: gcloud compute tpus queued-resources describe $name ${where[*]}" 1
        delete_all || return 1
        ;;
      SUSPENDED/ | */PREEMPTED | */TERMINATED | ACTIVE/MISSING)
        say "$name is gone; it is made anew"
        delete_all || return 1
        ;;
      *) sleep "$pause" ;; # it is being made, or deleted
    esac
  done
}

# --- its hosts -----------------------------------------------------------------------

known_script() { # what the other scripts know; a pid means nothing after a reboot
  cat <<'REMOTE'
pid=~/unipt_run/pid.$(cat /proc/sys/kernel/random/boot_id)
alive() { [ -f "$pid" ] && kill -0 -- "-$(cat "$pid")" 2>/dev/null; }
REMOTE
}

# Fresh images have Python 3.10. uv brings a newer one as files of its own: no root, no
# apt (locked by the image's own updates for minutes after the start), no compiler.
install_script() {
  known_script
  cat <<'REMOTE'
set -eu
if alive; then
  echo "a run is going on here; stop it first" >&2
  exit 3
fi
rm -rf ~/unipt_jax
mkdir -p ~/unipt_jax
tar -xzf ~/unipt_jax.tgz -C ~/unipt_jax
export PATH="$HOME/.local/bin:$PATH"
command -v uv >/dev/null ||
  PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --user --quiet uv ||
  curl -LsSf https://astral.sh/uv/install.sh | sh
[ -x ~/unipt_env/bin/python ] || uv venv --quiet --python ">=3.11,<3.14" ~/unipt_env
uv pip install --quiet --python ~/unipt_env/bin/python --editable "$HOME/unipt_jax[tpu]"
echo always | sudo -n tee /sys/kernel/mm/transparent_hugepage/enabled >/dev/null || true
mkdir -p ~/unipt_data
ln -sfn ~/unipt_data ~/unipt_jax/data
REMOTE
  local set
  for set in ${data[@]+"${data[@]}"}; do
    set="${set%/}"
    printf 'mkdir -p ~/unipt_data/%q && gcloud storage rsync --recursive %q ~/unipt_data/%q\n' \
      "${set##*/}" "$set" "${set##*/}"
  done
  echo 'touch ~/unipt_env/installed'
}

install() {
  local root archive
  root="$(git -C "$(dirname "${BASH_SOURCE[0]}")" rev-parse --show-toplevel)" ||
    die "what git tracks is copied; start this from a clone of the repository"
  archive="$(mktemp -d)/unipt_jax.tgz"
  say "copies what git tracks in $root to all hosts, and installs it"
  if [[ -z "$dry" ]]; then
    (cd "$root" && git ls-files -z | while IFS= read -r -d '' file; do
      if [[ -e "$file" ]]; then printf '%s\0' "$file"; fi
    done | tar --null --files-from=- -czf "$archive")
  fi
  patiently run gcloud compute tpus tpu-vm scp "$archive" "$name:unipt_jax.tgz" \
    "${where[@]}" --worker=all || return 1
  rm -rf "$(dirname "$archive")"
  on_all "$(install_script)"
}

# The run has a session of its own: neither a lost connection nor a logout ends it.
start_script() { # start_script COMMAND...
  local inner
  # shellcheck disable=SC2016 # expands on the host
  inner="trap : TERM; $(printf '%q ' "$@"); "'echo $? >~/unipt_run/part; mv ~/unipt_run/part ~/unipt_run/code'
  known_script
  cat <<REMOTE
set -eu
[ -f ~/unipt_env/installed ] || { echo "nothing is installed here; run install first" >&2; exit 4; }
mkdir -p ~/unipt_run
if alive; then
  echo "a run is going on here already; it is left alone"
  exit 0
fi
rm -f ~/unipt_run/code
cd ~/unipt_jax
export PATH="\$HOME/unipt_env/bin:\$PATH" PYTHONUNBUFFERED=1
nohup setsid bash -c $(printf %q "$inner") >>~/unipt_run/log 2>&1 </dev/null &
echo \$! >"\$pid"
REMOTE
}

state_script() {
  known_script
  cat <<'REMOTE'
if alive; then echo "unipt_run running"
elif [ -f ~/unipt_run/code ]; then echo "unipt_run ended $(cat ~/unipt_run/code)"
elif [ -f ~/unipt_run/log ]; then echo "unipt_run lost"
elif [ -f ~/unipt_env/installed ]; then echo "unipt_run idle"
else echo "unipt_run absent"; fi
REMOTE
}

follow_script() {
  known_script
  cat <<'REMOTE'
[ -f ~/unipt_run/log ] || { echo "no run was started here" >&2; exit 4; }
if alive; then tail -n 100 -F --pid="$(cat "$pid")" ~/unipt_run/log; else tail -n 100 ~/unipt_run/log; fi
echo "ended with code $(cat ~/unipt_run/code 2>/dev/null || echo unknown)"
REMOTE
}

stop_script() {
  known_script
  cat <<'REMOTE'
alive || exit 0
kill -TERM -- "-$(cat "$pid")"
for _ in $(seq 3000); do alive || exit 0; sleep 0.2; done
echo "it still runs after ten minutes; it is killed" >&2
kill -KILL -- "-$(cat "$pid")"
REMOTE
}

start() {
  say "starts on all hosts: ${command[*]}"
  on_all "$(start_script "${command[@]}")"
}

logs() {
  local code
  while :; do
    code=0
    vm ssh "--worker=$worker" "--command=$(follow_script)" || code=$?
    ((code == 255)) || return "$code"
    say "connection lost; the run goes on; connects again"
    sleep "$pause"
  done
}

status() {
  if [[ -n "$dry" ]]; then
    [[ -z "$queued" ]] || queue describe "--format=value(state.state)"
    vm describe "--format=value(state)"
  else
    [[ -z "$queued" ]] || echo "queued resource: $(state_of queue)"
    local node
    node="$(state_of vm)"
    echo "slice: $node"
    [[ "$node" == READY ]] || return 0
  fi
  # shellcheck disable=SC2016 # expands on the host
  on_all 'echo "$(hostname): $('"$(state_script)"'); $(tail -n 1 ~/unipt_run/log 2>/dev/null)"'
}

stop() { on_all "$(stop_script)"; }

delete() {
  if [[ -z "$dry" ]]; then # a request that waits has no slice yet, and would bring one
    local request node
    request="$(state_of queue)"
    if [[ "$request" == MISSING ]]; then
      queued=""
      node="$(state_of vm)"
      if [[ "$node" == MISSING ]]; then say "there is no '$name'" && return; fi
    else
      queued=1
    fi
  fi
  delete_all
}

# --- until the end -------------------------------------------------------------------

hosts() { # what the hosts say of the run, each answer once; fails where one cannot
  local answer
  answer="$(vm ssh --worker=all "--command=$(state_script)" 2>/dev/null)" || return 1
  sed -n 's/^.*unipt_run //p' <<<"$answer" | sort -u | paste -sd, -
}

supervise() {
  [[ "${command[*]}" == *--workdir=gs://* ]] ||
    die "supervise needs --workdir=gs://... in the command: a slice that is made anew has nothing of the old one's disk"
  if [[ -n "$dry" ]]; then
    ensure
    install
    start
    vm ssh --worker=all "--command=$(state_script)"
    return
  fi
  local said failed="" trouble=0
  while ((trouble < 20)); do # in a row
    if ! ensure; then
      trouble=$((trouble + 1))
      say "gcloud failed, see above; looks again"
      sleep "$pause"
      continue
    fi
    said="$(hosts)" || said=unknown # not reachable yet, or just lost
    case "$said" in
      unknown | *running*)
        failed=""
        sleep "$pause"
        continue
        ;;
      "ended 0") say "the run has ended" && return ;;
      *absent*) install || said=trouble ;;
      *idle* | *lost* | *"ended 75"*) ;;
      *) # look twice: a slice that is being preempted fails before it is gone
        [[ "$failed" != "$said" ]] || die "the run failed ($said); see: launch/tpu_vm.sh logs --name $name" 1
        failed="$said"
        sleep "$pause"
        continue
        ;;
    esac
    if [[ "$said" != trouble ]] && start; then trouble=0; else trouble=$((trouble + 1)); fi
    sleep "$pause"
  done
  die "gave up on '$name' after $trouble failures in a row; what gcloud said is above" 1
}

case "$action" in
  create) ensure || die "gcloud failed; what it said is above" 1 ;;
  run) start ;;
  up)
    ensure || die "gcloud failed; what it said is above" 1
    install
    start
    logs
    ;;
  *) "$action" ;;
esac
