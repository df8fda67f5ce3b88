"""Ranks for tests: real gloo process groups without paying Megatron's import in every test.

    tests process ── starts once ──> template   (imports torch and Megatron, installs the CPU platform)
          │                             ├─ forks ─> rank 0 ┐
          └── task, result (pickles) ───┼─ forks ─> rank 1 ├ one gloo process group, for one run
                                        └─ forks ─> rank … ┘

Importing Megatron takes six seconds or more in each process; a fork of the template takes milliseconds. So
every run gets new processes and nothing of Megatron's global state can leak from one test into the next.
"""

from __future__ import annotations

from tests.pool.pool import PoolError, RankError, RankPool, RankTimeout

__all__ = ["PoolError", "RankError", "RankPool", "RankTimeout"]
