# Sourced by local.sh and ssh.sh, which start processes as jobs of the shell.

# COMMAND=train: the processes of one run, which meet. COMMAND=sweep: each works on the same study by itself.
COMMAND=${COMMAND:-train}
case $COMMAND in train | sweep) ;; *)
  echo "$0: COMMAND=$COMMAND is not possible; it may be train or sweep" >&2
  exit 2
  ;;
esac

# Waits for all of them. Returns the status of the first that failed, or 0.
#   tell SIGNAL   is a function of the caller: passes a signal on to all processes
#   GRACE         seconds that the others have to end after one has failed
until_all_end() {
  local count=$1 status=0 code tenths
  trap 'signalled=yes; tell TERM' TERM INT
  for (( ; count > 0; count--)); do
    next_end
    code=$?
    if ((code && !status)); then
      status=$code
      # Those of a sweep take over what it left.
      if [[ $COMMAND == sweep ]]; then continue; fi
      # Where one has failed, the others may wait for it a long time.
      for ((tenths = 10 * ${GRACE:-5}; tenths > 0; tenths--)); do
        [[ $(jobs -rp) ]] || break
        sleep 0.1
      done
      if [[ $(jobs -rp) ]]; then tell KILL; fi
    fi
  done
  return "$status"
}

# The exit status of the next that ends. A signal interrupts the wait, too.
next_end() {
  local code
  while signalled=''; do
    wait -n
    code=$?
    [[ $signalled ]] || return "$code"
  done
}
