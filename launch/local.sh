#!/usr/bin/env bash
# Several processes on this machine, as one run. Tested: tests/test_processes.py runs it.
#
#   launch/local.sh 2 --config configs/text_classification.py --workdir runs/mine --config.…
#
# The first argument is the number of processes; the others are those of `python -m jaxft.train`.
# Environment:
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
count=${1:?usage: launch/local.sh PROCESSES --config FILE --workdir DIR …}
shift
port=${PORT:-$((20000 + RANDOM % 20000))}

pids=()
for ((id = 0; id < count; id++)); do
  "${PYTHON:-python}" -m jaxft.train "$@" \
    --coordinator="localhost:$port" --num_processes="$count" --process_id="$id" &
  pids+=($!)
done
trap 'signalled=yes; kill -TERM "${pids[@]}" 2>/dev/null' TERM INT

# The exit status of the next process that ends. A signal interrupts the wait, too.
next_end() {
  local code
  while signalled=''; do
    wait -n
    code=$?
    [[ $signalled ]] || return "$code"
  done
}

status=0
for ((left = count; left > 0; left--)); do
  next_end
  code=$?
  if ((code && !status)); then
    status=$code
    # Where one has failed, the others may wait for it a long time.
    for ((tenths = 10 * ${GRACE:-5}; tenths > 0; tenths--)); do
      [[ $(jobs -rp) ]] || break
      sleep 0.1
    done
    kill -KILL $(jobs -rp) 2>/dev/null
  fi
done
exit "$status"
