"""Start the ranks of a run, follow it, and end with the table."""

from __future__ import annotations

import importlib
import os
import signal
import socket
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from megatron_moo.errors import MooError
from megatron_moo.training import platform
from megatron_moo.training.agree import Refused, meeting_store, plan_together
from megatron_moo.training.fused import describe
from megatron_moo.training.integrity import complete_steps
from megatron_moo.training.plan import RunPlan, plan_run
from megatron_moo.training.ranks import Ending, run_ranks
from megatron_moo.training.recipe import Recipe, load_recipe, to_argv
from megatron_moo.training.where import Where, check_where, device, export, find_where, notes, visible_gpus


def train(recipe_path: Path, flags: list[str], runs: Path = Path("runs")) -> int:
    """Run a recipe; ``flags`` win over it. Returns the exit status of the ranks.

    Inside torchrun or an srun of several tasks this process is one of the ranks and trains itself; elsewhere it starts
    the ranks of this machine.

    Raises:
        MooError: before any rank trains, for anything a user can mend.
    """
    console = Console(stderr=False, highlight=False, soft_wrap=True)
    recipe = load_recipe(recipe_path, flags)
    restarts = restart_count(recipe)
    where = find_where(os.environ)
    if where is not None:
        return _be_a_rank(console, where, recipe, runs)
    plan, done = _make_plan(console, recipe, runs)
    console.print(
        f"megatron-moo: {plan.world} rank{'s' * (plan.world > 1)} on {socket.gethostname()}, started from here, "
        f"{device(0)}; {describe(plan.flags)}"
    )
    _warn(console, notes(None, os.environ, 0))
    if done is not None:
        console.print(f"megatron-moo: {done}")
        _finish(console, plan)
        return 0
    status = _run_ranks(console, plan, restarts)
    _conclude(console, plan, status)
    return status


def restart_count(recipe: Recipe) -> int:
    """How often ranks may be started again.

    Raises:
        MooError: for something that is no number.
    """
    given = str(recipe.values.get("max-restarts", 0))
    if not given.isdigit():
        raise MooError(f"{given!r} is not a number of restarts", "--max-restarts", "give 0 or more")
    return int(given)


def _make_plan(console: Console, recipe: Recipe, runs: Path) -> tuple[RunPlan, str | None]:
    """The plan, told; and why nothing is left to do, or None."""
    plan = plan_run(recipe, runs, lambda text: console.print(f"megatron-moo: {text} …"))
    console.print(f"megatron-moo: {plan.summary}")
    console.print(f"megatron-moo: run folder {os.path.relpath(plan.run_dir)}")
    _warn(console, plan.notes)
    done = last_step(plan.run_dir)
    if done >= plan.train_iters:
        return plan, f"all {done} steps are done; move the folder away to start again"
    if _stopped_like(plan):
        return plan, f"{_stopped_line(plan)}; raise --moo-patience or take --moo-early-stop away to go on"
    return plan, None


def _warn(console: Console, lines: list[str]) -> None:
    for line in lines:
        console.print(f"megatron-moo: warning: {line}", markup=False)


def _conclude(console: Console, plan: RunPlan, status: int) -> None:
    _finish(console, plan)
    if status == 0 and _stopped_like(plan):
        console.print(f"megatron-moo: {_stopped_line(plan)}")
    elif last_step(plan.run_dir) < plan.train_iters:
        why = f" by {signal.Signals(status - 128).name}" if status > 128 else ""
        console.print(f"megatron-moo: stopped{why} before the last step; run the same command again to go on")


def last_step(run_dir: Path) -> int:
    """Last step of a run that has ended, or 0."""
    from megatron_moo.report.metrics import read_metrics

    if not (run_dir / "metrics.jsonl").exists():
        return 0
    run = read_metrics(run_dir)
    return run.steps[-1].step if run.finished and run.steps else 0


def _stopped(plan: RunPlan) -> Any:
    """The ``stopped`` event that ended the run, or None."""
    from megatron_moo.report.metrics import read_metrics

    if not last_step(plan.run_dir):
        return None
    return read_metrics(plan.run_dir).stopped


def _stopped_like(plan: RunPlan) -> bool:
    """Whether the run was ended by the early stopping that this plan asks for too."""
    if (event := _stopped(plan)) is None or "moo-early-stop" not in plan.flags:
        return False
    from megatron_moo.data import load_manifest

    manifest = load_manifest(plan.flags["languages"])
    tags = [*manifest.languages, *manifest.unseen]
    asked = (str(plan.flags["moo-early-stop"]), int(plan.flags["moo-patience"]), tags)
    return asked == tuple(event.fields.get(name) for name in ("watch", "patience", "tags"))


def _stopped_line(plan: RunPlan) -> str:
    from megatron_moo.report.metrics import stopped_line

    return stopped_line(_stopped(plan))


def _be_a_rank(console: Console, where: Where, recipe: Recipe, runs: Path) -> int:
    """Be a rank that another launcher started; rank 0 plans for all, and writes the report at the end."""
    if where.launcher == "srun":  # torchrun does the same for its ranks
        os.environ.setdefault("OMP_NUM_THREADS", os.environ.get("SLURM_CPUS_PER_TASK", "1"))
    gpus = visible_gpus()
    check_where(where, recipe.values.get("nproc"), gpus)
    export(where, os.environ, gpus)
    if where.rank != 0:
        _import_ahead()
    store = meeting_store()  # kept until the end: on rank 0 it is the one that Megatron's process group uses
    try:
        plan, done = plan_together(where, recipe, lambda: _make_plan(console, recipe, runs), store)
    except Refused:
        return 2
    console.print(
        f"megatron-moo: {where.line(device(int(os.environ['LOCAL_RANK'])))}; {describe(plan.flags)}"
    )
    if where.local_rank == 0:
        _warn(console, notes(where, os.environ, gpus))
    if done is not None:
        if where.rank == 0:
            console.print(f"megatron-moo: {done}")
        return 0
    status = _train_here(plan)
    if where.rank == 0 and status == 0:
        _conclude(console, plan, status)
    return status


def _import_ahead() -> None:
    """Import what training needs while rank 0 plans: both take seconds."""
    platform.prepare()
    with platform.quiet():
        importlib.import_module("megatron.training.training")


def _train_here(plan: RunPlan) -> int:
    """Train in this process; Megatron leaves by ``sys.exit`` when a signal or a limit ends a run early."""
    from megatron_moo.training.main import main

    sys.argv = [sys.argv[0], *to_argv(plan.flags)]
    try:
        return main()
    except SystemExit as ending:
        return ending.code if isinstance(ending.code, int) else int(ending.code is not None)


def _run_ranks(console: Console, plan: RunPlan, restarts: int) -> int:
    """Run the ranks, again after a fault of the machine; 0, or 128 + the signal that ended them early.

    Raises:
        MooError: when they failed.
    """
    metrics = plan.run_dir / "metrics.jsonl"
    offset = metrics.stat().st_size if metrics.exists() else 0
    with Ending() as ending:
        for left in reversed(range(restarts + 1)):
            failure = run_ranks(plan, ending, partial(_show, console, plan))
            if failure is None:
                break
            if not (failure.machine and left) or ending.asked:
                raise failure.error
            saved = complete_steps(plan.run_dir / "checkpoints")
            console.print(f"megatron-moo: {failure.error.what}", markup=False)
            console.print(
                f"megatron-moo: starting again from step {saved[-1] if saved else 0} ({_counted(left - 1)} left)"
            )
    asked = ending.asked or (signal.SIGTERM if _was_signalled(metrics, offset) else 0)
    return 128 + asked if asked and last_step(plan.run_dir) < plan.train_iters else 0


def _show(console: Console, plan: RunPlan, ended: Callable[[], bool]) -> None:
    from megatron_moo.report.live import LiveView
    from megatron_moo.report.metrics import follow
    from megatron_moo.report.records import EventRecord

    metrics = plan.run_dir / "metrics.jsonl"
    offset = metrics.stat().st_size if metrics.exists() else 0
    with LiveView(console, plan.train_iters) as view:
        for record in follow(metrics, offset=offset, stop=ended):
            view.update(record)
            if isinstance(record, EventRecord) and record.event == "warning":
                _warn(console, [f"step {record.step}: {record.fields.get('text')}"])


def _was_signalled(metrics: Path, offset: int) -> bool:
    """Whether the ranks wrote, after ``offset``, that one of them was asked to end."""
    with metrics.open("rb") as file:
        file.seek(offset)
        return b'"event": "signal"' in file.read()


def _counted(restarts: int) -> str:
    return f"{restarts} restart{'s' * (restarts != 1)}"


def _finish(console: Console, plan: RunPlan) -> None:
    from megatron_moo.report.live import print_summary
    from megatron_moo.report.page import write_report

    write_report(plan.run_dir)
    print_summary(console, plan.run_dir)
