"""Megatron-style door: train a GPT by Bucket-Level MOO with flags alone, under torchrun or srun.

    torchrun --nproc-per-node 8 tools/pretrain_gpt.py --languages languages.yaml --num-layers 16 … --moo-method cagrad

Flags are Megatron's and ours; those that MOO or this machine needs are put in front, so yours win. The corpus is built
beside the run if ``--corpus`` names none.
"""

from __future__ import annotations

import sys

from megatron_moo.training.door import door

if __name__ == "__main__":
    sys.exit(door(sys.argv))
