#!/usr/bin/env bash
# Install what tests/end_to_end/test_slurm.py needs: Debian's SLURM and MUNGE. Nothing is started or configured.
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive
apt-get update
apt-get install -y --no-install-recommends slurm-wlm munge
