#!/usr/bin/env bash
# Is this node fit for a run? One line on stdout; on stderr what is wrong, a line each, and status 1.
# Run by common.sh once on every node before the ranks start: a node that is refused costs seconds, one that fails
# at step 10,000 costs the hours since the last checkpoint.
#   node_check.sh RUN_DIR     MIN_FREE_GB (default 50) of the run's file system, MIN_SHM_GB (default 1) of /dev/shm
set -uo pipefail
run_dir=$1
node=${SLURMD_NODENAME:-$(hostname)}
gpus=${SLURM_GPUS_ON_NODE:-0}
failed=0

fail() {
    echo "node check: $node: $*" >&2
    failed=1
}

free_gb() { df --output=avail -B1000000000 "$1" 2>/dev/null | tail -n 1 | tr -d ' '; }

# index, uncorrected memory errors, MiB in use, slowed down by heat: a line for every GPU.
gpus_by() {
    timeout 60 nvidia-smi --format=csv,noheader,nounits \
        --query-gpu="index,ecc.errors.uncorrected.volatile.total,memory.used,$1.hw_thermal_slowdown" 2>&1
}

# The folder of the run, written to: a file system that is read-only or not mounted here is found now.
probe=$run_dir/.node_check.$node
if ! { echo ok >"$probe" && [[ $(<"$probe") == ok ]]; } 2>/dev/null; then
    fail "cannot write to $run_dir"
fi
rm -f "$probe"
disk=$(free_gb "$run_dir") shm=$(free_gb /dev/shm)
[[ ${disk:-0} -ge ${MIN_FREE_GB:-50} ]] || fail "${disk:-no} GB free in $run_dir, ${MIN_FREE_GB:-50} wanted"
# NCCL and the data loaders share memory there; containers often have 64 MB.
[[ ${shm:-0} -ge ${MIN_SHM_GB:-1} ]] || fail "${shm:-no} GB free in /dev/shm, ${MIN_SHM_GB:-1} wanted"

if [[ $gpus -gt 0 ]]; then
    table=$(gpus_by clocks_event_reasons)
    status=$?
    if [[ $table == *"not a valid field"* ]]; then # drivers before 535 have an older name
        table=$(gpus_by clocks_throttle_reasons)
        status=$?
    fi
    if [[ $status -ne 0 ]]; then
        fail "nvidia-smi does not answer: $(head -n 1 <<<"$table")"
    else
        seen=$(grep -c . <<<"$table")
        [[ $seen -ge $gpus ]] || fail "$seen GPUs answer, SLURM gave $gpus"
        while IFS=', ' read -r index ecc used hot _; do
            # An uncorrected error has killed a job of somebody; the GPU wants a reset before the next.
            [[ $ecc =~ ^[1-9] ]] && fail "GPU $index has $ecc uncorrected memory errors"
            # More than a driver holds by itself: a process of an earlier job is left.
            [[ $used =~ ^[0-9]+$ && $used -gt 2000 ]] && fail "GPU $index has $used MiB in use"
            [[ $hot == Active ]] && fail "GPU $index is slowed down by heat"
        done <<<"$table"
    fi
fi

[[ $failed -eq 0 ]] && echo "node check: $node: fit ($gpus GPUs, ${disk} GB free for the run, ${shm} GB shared memory)"
exit "$failed"
