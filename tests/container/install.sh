#!/usr/bin/env bash
# Install what tests/end_to_end/test_container.py needs: Debian's buildah and mmdebstrap. No daemon, nothing is started.
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive
apt-get update
apt-get install -y --no-install-recommends buildah mmdebstrap
