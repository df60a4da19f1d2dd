#!/usr/bin/env bash
# One run over several machines that SSH reaches without a password: one process each.
#
#   launch/ssh.sh node1,node2 --config configs/text_classification.py --workdir /shared/runs/mine --config.…
#   launch/ssh.sh hosts.txt …          a file of one host a line
#   COMMAND=sweep launch/ssh.sh …      as workers of one sweep
#
# A host is what ssh takes: a name, user@name, or one of ~/.ssh/config. The other arguments are those of
# `python -m jaxft.train`, or `jaxft.sweep`; --workdir must lie on storage that all hosts share. Environment:
#   COMMAND=train   or sweep, whose processes are on their own
#   DIRECTORY       of this project on each host (default: that from which this is started)
#   PYTHON=python   the interpreter there
#   ADDRESS=node1   of the first host, as the others reach it (default: its name)
#   PORT=47700      there, of process 0
#   SSH='ssh -p 22' the command
#   GRACE=5         seconds that the others have to end after one has failed
#
# TERM and Ctrl-C are passed on: all save and stop with status 143. So they do when this script dies or loses a
# connection. Otherwise the status is that of the first process that failed (255: ssh itself), or 0. The same command
# continues a run that was stopped.
set -u
usage="usage: launch/ssh.sh HOST,HOST…|FILE --config FILE --workdir DIR …"
given=${1:?$usage}
shift
if [[ -f $given ]]; then
  read -ra hosts -d '' < <(sed 's/#.*//' "$given")
else
  IFS=, read -ra hosts <<<"$given"
fi
if [[ ${#hosts[@]} == 0 || " ${hosts[*]-} " == *"  "* ]]; then
  echo "launch/ssh.sh: no host in '$given'; $usage" >&2
  exit 2
fi
source "$(dirname "${BASH_SOURCE[0]}")/children.sh"
address=${ADDRESS:-${hosts[0]##*@}}
read -ra ssh <<<"${SSH:-ssh}"

# In single quotes, which every shell reads alike: the host's may be another than bash.
quoted() { printf "'%s' " "${@//\'/\'\\\'\'}"; }

# What runs on each host: the process, and beside it a reader of the signals that it is sent. The end of the
# input is the end of this script or of the connection.
there='
cd "$1" || exit 2
shift
exec 3<&0
"$@" </dev/null 3<&- &
child=$!
(
  while read -r signal; do kill -s "$signal" "$child"; done
  kill -s TERM "$child"
) <&3 2>/dev/null &
reader=$!
wait "$child"
status=$?
kill "$reader" 2>/dev/null
exit "$status"'

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
pids=() inputs=()
tell() {
  local input
  for input in "${inputs[@]}"; do echo "$1" >&"$input"; done 2>/dev/null
  # A host that does not answer any more is left to itself.
  if [[ $1 == KILL ]]; then sleep 1 && kill -KILL $(jobs -rp); fi 2>/dev/null
}
trap '' PIPE
for id in "${!hosts[@]}"; do
  meet=(--coordinator="$address:${PORT:-47700}" --num_processes="${#hosts[@]}" --process_id="$id")
  if [[ $COMMAND == sweep ]]; then meet=(); fi
  command=$(quoted bash -c "$there" bash "${DIRECTORY:-$PWD}" "${PYTHON:-python}" -m "jaxft.$COMMAND" "$@" \
    "${meet[@]}")
  mkfifo "$folder/$id"
  (
    for input in "${inputs[@]}"; do exec {input}>&-; done # or nobody would see their ends
    exec "${ssh[@]}" -o BatchMode=yes "${hosts[id]}" "$command"
  ) <"$folder/$id" &
  pids+=($!)
  exec {input}>"$folder/$id"
  inputs+=("$input")
done
until_all_end "${#hosts[@]}"
