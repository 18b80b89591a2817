# shellcheck shell=bash
# Sourced by the sbatch scripts here: the environment of a run, and `quantize`, which starts qpipe and sees to interruption and restart.
# What can be set from outside (sbatch --export=ALL, the default, passes it on):
#   QPIPE           the program                                      build/release/qpipe
#   QPIPE_LAUNCHER  what starts the ranks, with its options          srun --mpi=pmix --kill-on-bad-exit=0 --wait=60
#   QPIPE_MODULES   modules to load, such as "cuda/12.4 openmpi/4.1" none

if [[ -n ${QPIPE_MODULES:-} ]]; then
  read -ra modules <<<"$QPIPE_MODULES"
  set +u # module files read variables that are not set
  module load "${modules[@]}"
  set -u
fi

QPIPE=${QPIPE:-${QPIPE_ROOT:-$SLURM_SUBMIT_DIR}/build/release/qpipe}
# The ranks leave together, so one that ends must not have the others killed (kill-on-bad-exit, which a site may have on): their code 75 would
# be lost. When a rank died, those that wait for it are ended after a minute.
QPIPE_LAUNCHER=${QPIPE_LAUNCHER:-srun --mpi=pmix --kill-on-bad-exit=0 --wait=60}

# Cores. A rank would take its part of the whole machine, also of cores that belong to other jobs where Slurm does not bind.
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
export SRUN_CPUS_PER_TASK=$OMP_NUM_THREADS # since Slurm 22.05 srun does not take --cpus-per-task over from sbatch

# Node-local files. $SLURM_TMPDIR where the site makes one for each job. Home folders on NFS or Lustre are slow for many small files.
node_local=${SLURM_TMPDIR:-${TMPDIR:-/tmp}}/qpipe-$(id -u)
export XDG_CACHE_HOME=${XDG_CACHE_HOME:-$node_local/cache}      # tokenized text
export CUDA_CACHE_PATH=${CUDA_CACHE_PATH:-$node_local/cuda}     # kernels compiled for a GPU that the build did not name

# NCCL carries all device buffers. It finds NVLink, InfiniBand and GPUDirect itself.
export NCCL_DEBUG=${NCCL_DEBUG:-WARN} # says why, should it fail; INFO shows which network it took
# Set these in your own environment where needed:
#   NCCL_SOCKET_IFNAME=ib0   nodes that have interfaces the others cannot reach (docker0, management): NCCL may choose a wrong one and wait
#   NCCL_IB_HCA=mlx5         only these adapters, where some are for storage
#   NCCL_IB_TIMEOUT=22       large fabrics under load: "transport retry counter exceeded"; each step doubles the wait

# MPI carries host buffers only, so its CUDA support would do nothing but open contexts and take GPU memory.
export OMPI_MCA_opal_cuda_support=${OMPI_MCA_opal_cuda_support:-0}
export UCX_TLS=${UCX_TLS:-^cuda}
export OMPI_MCA_btl=${OMPI_MCA_btl:-^openib} # Open MPI 4's old InfiniBand transport: warns on every rank, and UCX replaces it

# mpirun would wait minutes for its daemon on a host that is gone, after the ranks have ended.
export OMPI_MCA_oob_tcp_keepalive_time=${OMPI_MCA_oob_tcp_keepalive_time:-10}
export OMPI_MCA_oob_tcp_keepalive_intvl=${OMPI_MCA_oob_tcp_keepalive_intvl:-5}
export OMPI_MCA_oob_tcp_keepalive_probes=${OMPI_MCA_oob_tcp_keepalive_probes:-3}

fail() {
  echo "slurm: error: $1" >&2
  exit "${2:-1}"
}

# option SECTION KEY <TOML of --dry-run: its string
option() {
  awk -v section="[$1]" -v key="$2" '
    /^\[/ { here = $0 == section }
    here && $1 == key { sub(/^[^=]*= *"/, ""); sub(/"$/, ""); print }'
}

# The commits in the run folder $1, a record for each finished layer: changes with each new one, and only then.
last_commit() { { find "$1" -maxdepth 1 -name 'layer-*.json' 2>/dev/null || :; } | sort | cksum; }

# Whether three starts of this job ended at the commit $1 that they began at. The file $2 has the commit at each start, one a line.
stalled() { (($(wc -l <"$2") >= 3)) && [[ $({ tail -n 3 "$2" && echo "$1"; } | uniq | wc -l) == 1 ]]; }

stop_if_stalled() {
  if stalled "$(last_commit "$1")" "$2"; then
    rm -f "$2"
    fail "two restarts without a new commit in $1: a layer takes longer than the job may run (raise --time), or the run fails early (read the log)"
  fi
}

# The processes of $QPIPE below process $1, on this node.
ranks_below() {
  local child program
  program=$(readlink -f "$QPIPE")
  for child in $(pgrep -P "$1"); do
    [[ $(readlink "/proc/$child/exe") != "$program" ]] || echo "$child"
    ranks_below "$child"
  done
}

# One rank is enough: all agree on the signal. Some builds of mpirun (Open MPI 4.1.6 of Ubuntu 24.04) do not hand it on, so that the launcher
# is asked only where no rank of its own runs here, as with srun.
ask_to_stop() {
  local ranks
  mapfile -t ranks < <(ranks_below "$1")
  kill -USR1 "${ranks[0]:-$1}" || :
}

# quantize CONFIG.toml [--set section.key=value ...]: one start of qpipe. Ends the script with qpipe's exit code; 75, interrupted with its work
# committed, requeues the job, whose next start goes on from there.
quantize() {
  # ARRAYJOB_TASK names one task of an array; the plain id of the last task would stand for all of them.
  local job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
  job=${job:-$SLURM_JOB_ID}
  local starts=slurm-$job.starts pid='' interrupted=0 signalled status effective folder launcher
  # TERM srun and mpirun would take as an order to kill the ranks; Slurm sends it to the ranks itself.
  trap 'signalled=1 interrupted=1; [[ -z $pid ]] || ask_to_stop "$pid"' USR1
  trap 'signalled=1' TERM

  [[ -x $QPIPE ]] || fail "no program $QPIPE: submit from the folder of the repository, or set QPIPE" 66
  effective=$("$QPIPE" "$@" --dry-run) || exit # a wrong configuration ends the job before its ranks start
  folder=$(option run folder <<<"$effective")
  if [[ -z $folder ]]; then
    folder=$(option output path <<<"$effective")
    folder=${folder%/}.run
  fi

  ((${SLURM_RESTART_COUNT:-0})) || : >"$starts"
  stop_if_stalled "$folder" "$starts"
  last_commit "$folder" >>"$starts"
  echo "slurm: job $job, start $((${SLURM_RESTART_COUNT:-0} + 1)), ${SLURM_NTASKS:-1} ranks on $SLURM_JOB_NODELIST: qpipe $*"

  status=75
  if ((!interrupted)); then
    read -ra launcher <<<"$QPIPE_LAUNCHER"
    "${launcher[@]}" "$QPIPE" "$@" &
    pid=$!
    signalled=1
    while ((signalled)); do # a signal ends the wait, not the run
      signalled=0 status=0
      wait "$pid" || status=$?
    done
  fi

  if ((status != 75)); then
    rm -f "$starts"
    exit "$status"
  fi
  stop_if_stalled "$folder" "$starts"
  # A job that was cancelled is not to come back, and one that Slurm requeues itself (preemption, failed node) needs no help.
  [[ $(squeue --noheader --jobs="$job" --format=%T) == RUNNING ]] || exit 75
  echo "slurm: interrupted, requeued"
  scontrol requeue "$job" || fail "the job cannot be requeued here: submit it again, and it goes on from $folder" 75
  exit 75
}
