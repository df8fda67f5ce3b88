#!/usr/bin/env bash
# What srun starts once on every node: torchrun with the ranks of the node. Arguments: what torchrun runs.
set -euo pipefail
read -r -a addresses <<<"$MOO_ADDRESSES"
cd "$MEGATRON_MOO"

# Ranks that start again must not meet in the store of those that died: gloo and NCCL would find their old addresses.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1

# SIGUSR1 would end torchrun at once, and its ranks with it, if it were not told to pass the signal on.
# is_host: which node keeps the meeting place follows from names otherwise, and they need not resolve.
exec "$PYTHON" -m torch.distributed.run \
    --nnodes="$SLURM_STEP_NUM_NODES" \
    --nproc-per-node="$NPROC" \
    --rdzv-backend=c10d \
    --rdzv-id="$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}" \
    --rdzv-endpoint="${addresses[0]}:$MOO_PORT" \
    --rdzv-conf="is_host=$((SLURM_NODEID == 0)),join_timeout=600" \
    --local-addr="${addresses[$SLURM_NODEID]}" \
    --max-restarts="$MAX_RESTARTS" \
    --signals_to_handle=SIGTERM,SIGUSR1 \
    "$@"
