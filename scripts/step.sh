# Sourced by the scripts: step "what" COMMAND... says what it does and how long it took; a failure shows the end of the command's output.
[[ $(id -u) != 0 ]] || export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1  # Open MPI refuses root otherwise

fail() {
  echo "error: $*" >&2
  exit 1
}

step() {
  local what=$1 start=$SECONDS log status=0
  shift
  log=$(mktemp "${TMPDIR:-/tmp}/qpipe-step.XXXXXX")
  printf '%s ... ' "$what"
  "$@" >"$log" 2>&1 </dev/null || status=$?
  if ((status == 0)); then
    echo "$((SECONDS - start)) s"
    rm -f "$log"
    return
  fi
  echo "FAILED"
  tail -n 40 "$log" >&2
  fail "'$*' ended with code $status; all of its output: $log"
}

# gpus: how many NVIDIA GPUs this machine has.
gpus() {
  local list
  if list=$(nvidia-smi --list-gpus 2>/dev/null); then grep -c '^GPU ' <<<"$list" || true; else echo 0; fi
}
