"""Megatron-style door to ``megatron-moo convert``: ``python tools/convert_checkpoint.py import HF_DIR CKPT_DIR``."""

from __future__ import annotations

import sys

from megatron_moo.cli import main

if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:]]))
