# shellcheck shell=bash
# NCCL's settings, each with its reason. Sourced by common.sh; what is set before wins. Not tried on real hardware.

# Says which peer and which call failed. INFO writes thousands of lines at the start of every rank.
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}

# The meeting of NCCL's ranks goes over TCP and takes the first interface that is up; docker0 and lo lead nowhere.
# Clusters with several networks name the right one here, e.g. NCCL_SOCKET_IFNAME=bond0.
export NCCL_SOCKET_IFNAME=${NCCL_SOCKET_IFNAME:-^lo,docker}

# The exchange of rows is an all-to-all. With PXN, data for a GPU of another node first goes over NVLink to the GPU
# whose network card is on the same rail as the receiver: fewer, larger messages. On by default; written down because
# it is the setting that hurts this exchange most when a site turns it off.
export NCCL_PXN_DISABLE=${NCCL_PXN_DISABLE:-0}

# Reductions inside NVLink switches help all-reduce and need buffers on every GPU. Our large collectives are the
# all-to-all, which gains nothing, and the parameters' all-gather: the memory is worth more to rows.
export NCCL_NVLS_ENABLE=${NCCL_NVLS_ENABLE:-0}

# 4.096 us x 2^22 = 17 s until InfiniBand gives a packet up: a flapping link heals within that more often than not.
export NCCL_IB_TIMEOUT=${NCCL_IB_TIMEOUT:-22}

# One launch queue: a collective that was started before a kernel also runs before it, as Megatron's overlap of
# tensor parallelism counts on.
export CUDA_DEVICE_MAX_CONNECTIONS=${CUDA_DEVICE_MAX_CONNECTIONS:-1}

# torch keeps the last 2,000 collectives of every rank and writes them to files when one times out: who was missing.
export TORCH_FR_BUFFER_SIZE=${TORCH_FR_BUFFER_SIZE:-2000}
export TORCH_NCCL_TRACE_BUFFER_SIZE=$TORCH_FR_BUFFER_SIZE TORCH_NCCL_DUMP_ON_TIMEOUT=1
