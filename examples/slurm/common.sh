# shellcheck shell=bash
# What the sbatch scripts of this folder share: addresses, node check, one torchrun a node, signals, requeueing.
#
# A script sets what it wants to change and calls `moo_train RECIPE [FLAGS]`. Settings, all from the environment:
#   MEGATRON_MOO  the checkout, on a file system that all nodes see (default: where sbatch was called)
#   RUN_DIR       run folder, there too (default: runs/ and the recipe's name)
#   PYTHON        Python with megatron_moo (default: .venv/bin/python of the checkout; inside a container: python)
#   NPROC         ranks a node (default: the GPUs that SLURM gave)
#   MAX_RESTARTS  how often torchrun starts the ranks again after one died (default 2)
#   SAVE_SECONDS  what a save at the end may take (default 540; --signal=B:USR1@600 leaves 600)
#   MAX_STALLS    starts without a newly saved step until the job is not started again (default 1)
# and two arrays: MOO_SRUN, more options of srun; MOO_WRAP, a command in front of the ranks' (a container).
# A script with a container calls `moo_places "$@"` before it asks moo_mounts what has to be mounted.

MEGATRON_MOO=$(realpath -s "${MEGATRON_MOO:-${SLURM_SUBMIT_DIR:-$PWD}}")
MOO_SLURM=$MEGATRON_MOO/examples/slurm
MOO_ENDING=
MOO_STEP=
MOO_PASSED_ON=
declare -a MOO_SRUN MOO_WRAP

moo_say() { echo "$(date +%FT%T) job ${SLURM_JOB_ID:-?} start ${SLURM_RESTART_COUNT:-0}: $*"; }

# The address of a node: its name where that resolves, else what SLURM itself uses.
moo_address() {
    if getent hosts "$1" >/dev/null; then
        echo "$1"
    else
        scontrol show node "$1" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p'
    fi
}

moo_setup() {
    # shellcheck source=examples/slurm/nccl.sh
    source "$MOO_SLURM/nccl.sh"
    local node addresses=()
    while read -r node; do addresses+=("$(moo_address "$node")"); done < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
    # scontrol is rarely inside a container, so every task is told all addresses.
    export MOO_ADDRESSES="${addresses[*]}"
    # Of this start of this job alone, below the ports that systems hand out by themselves.
    export MOO_PORT=$((15000 + (7 * SLURM_JOB_ID + ${SLURM_RESTART_COUNT:-0}) % 15000))
    export MEGATRON_MOO PYTHON=${PYTHON:-$MEGATRON_MOO/.venv/bin/python} NPROC=${NPROC:-${SLURM_GPUS_ON_NODE:-1}}
    export MAX_RESTARTS=${MAX_RESTARTS:-2}
    # torchrun kills what has not ended this long after a signal; its own 30 s are too short for a large checkpoint.
    export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${SAVE_SECONDS:-540}
    # Since SLURM 22.05 srun does not take over the job's --cpus-per-task: every rank of a node would share one core.
    [[ -n ${SLURM_CPUS_PER_TASK:-} ]] && export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
    # Written to the log as it happens, and the memory of a rank is not doubled by fragments.
    export PYTHONUNBUFFERED=1 PYTORCH_CUDA_ALLOC_CONF=${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}
}

# Recipe and folder of the run, absolute. Arguments: those of moo_train.
moo_places() {
    if [[ $# -eq 0 || ! -f ${1:-} || ! -r ${1:-} ]]; then
        moo_say "${1:-no recipe}: sbatch SCRIPT RECIPE [FLAGS] wants a recipe that can be read"
        exit 2
    fi
    MOO_RECIPE=$(realpath "$1")
    RUN_DIR=${RUN_DIR:-$MEGATRON_MOO/runs/$(basename "$MOO_RECIPE" .yaml)}
    mkdir -p "$RUN_DIR"
    RUN_DIR=$(realpath "$RUN_DIR")
}

# What a container mounts, each at the same path inside as outside: FOLDER:FOLDER,FOLDER:FOLDER:ro...
moo_mounts() {
    local folder mounts=$MEGATRON_MOO:$MEGATRON_MOO
    folder=$(dirname "$MOO_RECIPE")
    [[ $folder/ == "$MEGATRON_MOO"/* ]] || mounts+=,$folder:$folder
    if [[ -n ${DATA:-} ]]; then
        folder=$(realpath -ms "$DATA") # by the name that recipes call it, a link or not
        mounts+=,$folder:$folder:ro
    fi
    echo "$mounts,$RUN_DIR:$RUN_DIR"
}

# Whether a step ended because SLURM took its nodes for a job of higher priority. Argument: its status. In a partition's
# GraceTime SLURM sends SIGTERM to the ranks, which save and leave, and nothing to this script; a script that then ended
# with an error would end the job. torchrun has status 1 after that, and 143 or 137 where it was killed. A time of
# pre-emption before this start belongs to an earlier one.
moo_preempted() {
    [[ $1 == 1 || $1 == 137 || $1 == 143 ]] || return 1
    local job started preempted
    job=$(SLURM_TIME_FORMAT=standard scontrol show job "$SLURM_JOB_ID" | tr ' ' '\n')
    started=$(sed -n 's/^StartTime=//p' <<<"$job")
    preempted=$(sed -n 's/^PreemptTime=//p' <<<"$job")
    [[ $preempted == [0-9]* && ! $preempted < $started ]]
}

# Pass a signal on to the step; srun gives it to every torchrun, and that to its ranks, which save and leave. Before
# there is a step it is remembered, and none is started.
moo_signal() {
    MOO_ENDING=SIG$1
    [[ -n $MOO_STEP ]] || return 0
    MOO_PASSED_ON=1
    moo_say "SIG$1: asking the ranks to save and leave"
    kill -s "$1" "$MOO_STEP" 2>/dev/null || true
}
trap 'moo_signal USR1' USR1
trap 'moo_signal TERM' TERM

# Refuse nodes that would fail later. Outside any container: it looks at the machine.
moo_check_nodes() {
    srun --ntasks-per-node=1 --kill-on-bad-exit=0 bash "$MOO_SLURM/node_check.sh" "$RUN_DIR" && return
    moo_say "a node failed its check (above); submit again with --exclude=NODE"
    exit 4
}

# torchrun on every node with the given arguments; returns the status of srun, or that of a signal that came before.
moo_start() {
    local status
    if [[ -n $MOO_ENDING ]]; then
        moo_say "$MOO_ENDING came before the ranks were started"
        return $((128 + $(kill -l "$MOO_ENDING")))
    fi
    srun --ntasks-per-node=1 --kill-on-bad-exit=1 "${MOO_SRUN[@]}" "${MOO_WRAP[@]}" bash "$MOO_SLURM/node.sh" "$@" &
    MOO_STEP=$!
    [[ -z $MOO_ENDING || -n $MOO_PASSED_ON ]] || moo_signal "${MOO_ENDING#SIG}" # it came between these two lines
    while :; do # a signal ends `wait` before the step has ended
        status=0
        wait "$MOO_STEP" || status=$?
        kill -0 "$MOO_STEP" 2>/dev/null || return "$status"
    done
}

# Last step that a complete checkpoint holds; 0 where none does, or where the tracker has no number (torn, `release`).
moo_saved() {
    local tracker=$RUN_DIR/checkpoints/latest_checkpointed_iteration.txt saved=
    [[ -f $tracker ]] && saved=$(<"$tracker")
    [[ $saved =~ ^[0-9]+$ ]] || saved=0
    echo $((10#$saved))
}

# Starts so far without a newly saved step; remembered beside the run.
moo_stalls() {
    local before=-1 stalls=0
    if [[ ${SLURM_RESTART_COUNT:-0} -gt 0 && -f $RUN_DIR/requeue.state ]]; then
        read -r before stalls <"$RUN_DIR/requeue.state" || true # a full disk left it empty
        [[ $before =~ ^[0-9]+$ && $stalls =~ ^[0-9]+$ ]] || before=-1 stalls=0
    fi
    [[ $(moo_saved) -eq $before ]] && echo $((stalls + 1)) || echo 0
}

moo_stop_when_stalled() {
    local stalls
    stalls=$(moo_stalls)
    [[ $stalls -lt ${MAX_STALLS:-1} ]] && return
    moo_say "no step was saved since the last start (still $(moo_saved)): not started again; see the log above"
    exit 3
}

moo_train() {
    local status=0 stalls
    moo_places "$@"
    shift
    moo_stop_when_stalled
    stalls=$(moo_stalls)
    echo "$(moo_saved) $stalls" >"$RUN_DIR/requeue.state"
    moo_setup
    moo_check_nodes
    moo_say "step $(moo_saved) is saved; starting $NPROC ranks on each of $SLURM_JOB_NUM_NODES nodes"
    moo_start -m megatron_moo.cli train "$MOO_RECIPE" --run-dir "$RUN_DIR" --exit-signal-handler "$@" || status=$?
    [[ $status -ne 0 && -z $MOO_ENDING ]] && moo_preempted "$status" && MOO_ENDING=pre-emption
    moo_say "the step ended with status $status${MOO_ENDING:+ after $MOO_ENDING}; step $(moo_saved) is saved"
    # SIGTERM is SLURM's own end of a job: cancelled, or requeued by SLURM. SIGUSR1 is --signal's.
    [[ $MOO_ENDING == SIGTERM ]] && exit 143
    if [[ -n $MOO_ENDING ]]; then
        SLURM_RESTART_COUNT=$((${SLURM_RESTART_COUNT:-0} + 1)) moo_stop_when_stalled
        moo_say "requeueing"
        scontrol requeue "$SLURM_JOB_ID"
        exit 0
    fi
    exit "$status"
}
