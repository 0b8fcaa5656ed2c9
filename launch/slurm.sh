#!/usr/bin/env bash
#SBATCH --job-name=unipt_jax
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
# Submits one command as a Slurm job of several processes, and is that job's script.
set -euo pipefail

# What to ask for; set them in the environment (NODES=4 launch/slurm.sh ...) or here.
NODES="${NODES:-1}"
GPUS_PER_NODE="${GPUS_PER_NODE:-8}" # 0: a cluster without GPUs
TASKS_PER="${TASKS_PER:-gpu}"       # a process a gpu, or a process a node
CPUS_PER_TASK="${CPUS_PER_TASK:-8}"
TIME="${TIME:-24:00:00}"
SAVE_SECONDS="${SAVE_SECONDS:-300}" # before the time is up, for a last save
JOB_NAME="${JOB_NAME:-unipt_jax}"
PARTITION="${PARTITION:-}"
ACCOUNT="${ACCOUNT:-}"

usage() {
  cat <<'TEXT'
usage: [NODES=2] [...] launch/slurm.sh [--dry-run] [--] COMMAND...

Submits COMMAND as a job, from the root of the clone; all nodes must see this folder and
the work directory:

  NODES=2 PARTITION=gpu launch/slurm.sh .venv/bin/python -m unipt_jax.main \
    --config=configs/pretrain.py:paper --workdir=/shared/runs/paper

Variables: NODES, GPUS_PER_NODE, TASKS_PER (gpu or node), CPUS_PER_TASK, TIME,
SAVE_SECONDS, JOB_NAME, PARTITION, ACCOUNT. --dry-run prints what would be submitted.
Within an allocation (sbatch launch/slurm.sh COMMAND..., or salloc's shell) it starts
COMMAND there.

SAVE_SECONDS before the time is up the processes have SIGTERM; they save and end with 75,
and the job goes back to the queue, where it starts the same command, which goes on. A
preempted job is put back by Slurm itself (--requeue).
TEXT
}

die() {
  echo "slurm.sh: $1" >&2
  exit 2
}

dry=""
while (($#)); do
  case "$1" in
    -h | --help) usage && exit 0 ;;
    --dry-run) dry=1 ;;
    --) shift && break ;;
    -*) die "unknown flag $1; see --help" ;;
    *) break ;;
  esac
  shift
done
(($#)) || die "no command; see --help"

submit() { # submit COMMAND...
  local tasks=1 self
  case "$TASKS_PER" in
    gpu) tasks="$GPUS_PER_NODE" ;;
    node) ;;
    *) die "TASKS_PER must be gpu or node, not '$TASKS_PER'" ;;
  esac
  [[ "$NODES" =~ ^[1-9][0-9]*$ ]] || die "NODES must be a whole number from 1, not '$NODES'"
  [[ "$GPUS_PER_NODE" =~ ^[0-9]+$ ]] || die "GPUS_PER_NODE must be a whole number, not '$GPUS_PER_NODE'"
  ((tasks)) || die "TASKS_PER=gpu needs GPUs; set TASKS_PER=node"
  self="${BASH_SOURCE[0]}"
  local line=(sbatch "--job-name=$JOB_NAME" "--nodes=$NODES" "--gpus-per-node=$GPUS_PER_NODE"
    "--ntasks-per-node=$tasks" "--cpus-per-task=$CPUS_PER_TASK" "--time=$TIME"
    "--signal=B:USR1@$SAVE_SECONDS")
  [[ -z "$PARTITION" ]] || line+=("--partition=$PARTITION")
  [[ -z "$ACCOUNT" ]] || line+=("--account=$ACCOUNT")
  line+=("$self" "$@")
  if [[ -n "$dry" ]]; then
    printf '%q ' "${line[@]}"
    echo
    return
  fi
  command -v sbatch >/dev/null || die "no sbatch on PATH; run this on a login node of a Slurm cluster"
  exec "${line[@]}"
}

start() { # start COMMAND...: on all tasks of this allocation
  local line=(srun --kill-on-bad-exit=0 --wait=0)
  # Since Slurm 22.05 srun does not take this over by itself.
  [[ -z "${SLURM_CPUS_PER_TASK:-}" ]] || line+=("--cpus-per-task=$SLURM_CPUS_PER_TASK")
  line+=("$@")
  if [[ -n "$dry" ]]; then
    printf '%q ' "${line[@]}"
    echo
    return
  fi
  command -v srun >/dev/null || die "no srun on PATH, though this is a Slurm allocation"
  export PYTHONUNBUFFERED=1
  local again="" interrupted="" code=0 step
  "${line[@]}" &
  step="$!"
  # srun passes SIGTERM on to its tasks.
  trap 'interrupted=1 again=1; kill -s TERM "$step" 2>/dev/null || true' USR1
  trap 'interrupted=1; kill -s TERM "$step" 2>/dev/null || true' TERM INT
  while :; do
    interrupted="" code=0
    wait "$step" || code=$?
    [[ -n "$interrupted" ]] || break
  done
  if [[ -n "$again" ]] && ((code)); then
    echo "slurm.sh: the time is up (code $code); job $SLURM_JOB_ID goes back to the queue"
    scontrol requeue "$SLURM_JOB_ID"
  fi
  return "$code"
}

if [[ -n "${SLURM_JOB_ID:-}" ]]; then start "$@"; else submit "$@"; fi
