#!/usr/bin/env bash
# Several processes on this machine, as one run.
#
#   launch/local.sh 2 --config configs/text_classification.py --workdir runs/mine --config.…
#   COMMAND=sweep launch/local.sh 2 --config … --space … --workdir runs/sweep      as workers of one sweep
#
# The first argument is the number of processes; the others are those of `python -m jaxft.train`, or `jaxft.sweep`.
# Environment:
#   COMMAND=train           or sweep, whose processes are on their own, each with one of the NVIDIA GPUs
#   JAX_NUM_CPU_DEVICES=4   without accelerators: virtual devices of each process
#   PORT=12345              of process 0; otherwise one is chosen
#   PYTHON=python           the interpreter
#   GRACE=5                 seconds that the others have to end after one has failed
#
# TERM and Ctrl-C save and stop all processes with status 143. Otherwise the status is that of the
# first process that failed, or 0. The same command continues a run that was stopped.
#
# One process can drive all GPUs of a machine, and needs no launcher for it.
set -u
usage="usage: launch/local.sh PROCESSES --config FILE --workdir DIR …"
count=${1:?$usage}
if ! [[ $count =~ ^[1-9][0-9]*$ ]]; then
  echo "launch/local.sh: '$count' is not a number of processes; $usage" >&2
  exit 2
fi
shift
source "$(dirname "${BASH_SOURCE[0]}")/children.sh"
port=${PORT:-$((20000 + RANDOM % 12000))} # below those that the kernel gives to connections

gpus=()
if [[ ${CUDA_VISIBLE_DEVICES-} ]]; then
  IFS=, read -ra gpus <<<"$CUDA_VISIBLE_DEVICES"
elif command -v nvidia-smi >/dev/null; then
  mapfile -t gpus < <(nvidia-smi --query-gpu=index --format=csv,noheader)
fi
pids=()
tell() { kill "-$1" "${pids[@]}" 2>/dev/null; }
for ((id = 0; id < count; id++)); do
  if [[ $COMMAND == sweep ]]; then
    if ((${#gpus[@]})); then export CUDA_VISIBLE_DEVICES=${gpus[id % ${#gpus[@]}]}; fi
    "${PYTHON:-python}" -m jaxft.sweep "$@" &
  else
    "${PYTHON:-python}" -m jaxft.train "$@" \
      --coordinator="localhost:$port" --num_processes="$count" --process_id="$id" &
  fi
  pids+=($!)
done
until_all_end "$count"
