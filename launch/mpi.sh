#!/usr/bin/env bash
# One rank of a run started by mpirun (Open MPI, MPICH, Intel MPI).
#
#   mpirun -np 4 launch/mpi.sh --config configs/text_classification.py --workdir runs/mine --config.…
#   mpirun -np 16 -x COORDINATOR=node1:47700 launch/mpi.sh …      ranks on several machines
#   mpirun -np 4 -x COMMAND=sweep launch/mpi.sh --config … --space … --workdir …      as workers of one sweep
#
# The arguments are those of `python -m jaxft.train`, or `jaxft.sweep`. MPI only starts the processes; they find each
# other at COORDINATOR, which is host:port of rank 0 and by default a port of this machine. With
# NVIDIA GPUs each rank takes the one of its number on its machine.
#
# USR1 to mpirun, which passes it on, saves and stops all ranks with status 143. At TERM and Ctrl-C Open MPI kills
# them after a second; with `--mca odls_base_sigkill_timeout 60` it gives them a minute, and waits twice as long in any
# case.
set -u
rank=${OMPI_COMM_WORLD_RANK:-${PMI_RANK:?start this with mpirun}}
size=${OMPI_COMM_WORLD_SIZE:-${PMI_SIZE:?start this with mpirun}}
command=${COMMAND:-train}
case $command in train | sweep) ;; *)
  echo "launch/mpi.sh: COMMAND=$command is not possible; it may be train or sweep" >&2
  exit 2
  ;;
esac
meet=(--coordinator="${COORDINATOR:-localhost:47700}" --num_processes="$size" --process_id="$rank")
if [[ $command == sweep ]]; then meet=(); fi
local_rank=${OMPI_COMM_WORLD_LOCAL_RANK:-${MPI_LOCALRANKID:-}}
if [[ $local_rank ]] && command -v nvidia-smi >/dev/null; then
  export CUDA_VISIBLE_DEVICES=$local_rank
fi
(
  trap '' USR1 # mpirun sends it to the process, too, which would die of it
  exec "${PYTHON:-python}" -m "jaxft.$command" "$@" "${meet[@]}"
) &
child=$!
trap 'kill -TERM "$child"' TERM USR1
# A signal interrupts the wait; the process is still there then.
while wait "$child"; status=$?; kill -0 "$child" 2>/dev/null; do :; done
exit "$status"
