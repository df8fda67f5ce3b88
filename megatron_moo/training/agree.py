"""One plan for all ranks: rank 0 makes it, the others take it, or all of them leave.

Without a launcher of ours in front (torchrun, srun) every rank reads the recipe by itself. Rank 0 alone builds the
corpus and claims the run folder; the others tell it what they read and wait. A rank that was started with other
settings is named before any of them trains.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

from megatron_moo.errors import MooError
from megatron_moo.training.plan import RunPlan
from megatron_moo.training.recipe import Recipe
from megatron_moo.training.where import Where

# For all ranks to be there. Building a corpus may take hours after that: a rank 0 that dies ends the wait at once,
# because its store goes with it.
MEETING_S = 600.0
_PLANNING = timedelta(hours=24)
_HEARD_S = 10.0
_TAKEN = "taken"


class Refused(Exception):
    """Rank 0 has said why; this rank leaves silently."""


def meeting_store(timeout_s: float = MEETING_S) -> Any:
    """The store of ``MASTER_ADDR:MASTER_PORT``, which ``init_process_group`` will use again. Keep it alive.

    Raises:
        MooError: when the ranks do not find each other.
    """
    import torch.distributed as dist

    try:
        store, _, _ = next(dist.rendezvous("env://", timeout=timedelta(seconds=timeout_s)))
    except (dist.DistError, RuntimeError) as error:
        raise MooError(
            f"the ranks did not meet within {timeout_s:g} s ({str(error).splitlines()[0]})",
            "MASTER_ADDR:MASTER_PORT",
            "check that all ranks were started and that the first node's port is free and reachable",
        ) from None
    return store


def plan_together(
    where: Where, recipe: Recipe, make: Callable[[], tuple[RunPlan, str | None]], store: Any
) -> tuple[RunPlan, str | None]:
    """Rank 0's plan, and why nothing is left to do or None, on every rank.

    Args:
        where: this rank.
        recipe: the recipe as this rank read it, command line laid over it.
        make: makes both; called by rank 0 only.
        store: a :func:`meeting_store`.

    Raises:
        MooError: on rank 0, for anything a user can mend.
        Refused: on the others, when rank 0 raised.
    """
    import torch.distributed as dist

    store = dist.PrefixStore("megatron_moo/plan", store)
    mine = json.dumps(recipe.values, sort_keys=True, default=str)
    if where.rank != 0:
        store.set(str(where.rank), mine)
        store.set_timeout(_PLANNING)
        try:
            told = json.loads(store.get("plan"))
        except dist.DistError:
            raise MooError(
                "rank 0 ended before it had a plan", f"rank {where.rank}", "see rank 0's log"
            ) from None
        with contextlib.suppress(dist.DistError):  # rank 0 may leave as soon as it has counted
            store.add(_TAKEN, 1)
        if told is None:
            raise Refused
        plan = told["plan"]
        return RunPlan(**{**plan, "run_dir": Path(plan["run_dir"])}), told["done"]
    try:
        _compare(store, where.world, json.loads(mine))
        plan, done = make()
    except BaseException:
        _refuse(store, where.world - 1)
        raise
    store.set("plan", json.dumps({"plan": asdict(plan), "done": done}, default=str))
    if done is not None:
        _until_heard(store, where.world - 1)  # this rank is about to leave, and the store with it
    return plan, done


def _refuse(store: Any, others: int) -> None:
    """Tell the others to leave."""
    store.set("plan", "null")
    _until_heard(store, others)


def _until_heard(store: Any, others: int) -> None:
    """Keep the store until the others have read the plan."""
    deadline = time.monotonic() + _HEARD_S
    while store.add(_TAKEN, 0) < others and time.monotonic() < deadline:
        time.sleep(0.05)


def _compare(store: Any, world: int, mine: dict[str, Any]) -> None:
    import torch.distributed as dist

    for rank in range(1, world):
        try:
            theirs = json.loads(store.get(str(rank)))
        except dist.DistError:
            raise MooError(f"rank {rank} of {world} did not come", "start", "see its log") from None
        keys = sorted(key for key in {*mine, *theirs} if mine.get(key) != theirs.get(key))
        if keys:
            raise MooError(
                f"rank {rank} was started with {keys[0]} {theirs.get(keys[0])!r}, rank 0 with {mine.get(keys[0])!r}",
                "start",
                "give every rank the same recipe and flags",
            )
