"""A run's checkpoints: which one it goes on from, that it is undamaged, and that every save is whole."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from megatron_moo.buckets.doing import DOING
from megatron_moo.errors import MooError
from megatron_moo.training import integrity
from megatron_moo.training.seam_checkpoints import CheckpointSeam
from megatron_moo.training.watchdog import peer_is_lost

# What torchrun leaves its ranks after it passed a signal on, before it kills them (TORCH_ELASTIC_SHUTDOWN_TIMEOUT).
_GRACE_S = 30.0
_FORMAT = "torch_dist"


class Checkpoints:
    """Guards a run's saves and what it loads.

    Args:
        args: Megatron's arguments with ours.
        event: writes an event to the metrics.
        warn: tells the user something of a step.
        asked_to_end: called on every rank with the ranks that got the signal to end.
    """

    def __init__(
        self,
        args: Any,
        event: Callable[..., None],
        warn: Callable[[int, str], None],
        asked_to_end: Callable[[list[int]], None],
    ) -> None:
        self.args, self._event, self._warn = args, event, warn
        self.seam = CheckpointSeam(
            self._save, integrity.write_checksums, self._saved, asked_to_end, bool(args.async_save)
        )
        # Lets Megatron call _last_file at the right moment. The other formats have no such place.
        args.verify_integrity = args.ckpt_format == _FORMAT

    def remove(self) -> None:
        """Take the guard out of Megatron again."""
        self.seam.remove()

    # Before loading ---------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Settle what will be loaded, and refuse it where it is damaged or not ours. A collective call.

        Raises:
            MooError: on every rank, naming the file.
        """
        checkpoint = _from_first(self._choose)
        if checkpoint is None or not (checkpoint / integrity.CHECKSUMS).exists():
            return
        if not self.args.moo_skip_verify:
            _verify_together(checkpoint)

    def _choose(self) -> Path | None:
        """The checkpoint that Megatron will load, None when it starts anew; makes the tracker file say so."""
        for name in ("load", "pretrained_checkpoint"):
            folder = getattr(self.args, name, None)
            if folder is None or not Path(folder).is_dir():
                continue
            step = self.args.ckpt_step if name == "load" else None
            integrity.check_owner({"load": folder}, trusted=self.args.moo_trust_load)
            if (found := self._chosen(Path(folder), step)) is not None:
                return found
        return None

    def _chosen(self, folder: Path, asked: int | None) -> Path | None:
        own = self.args.save is not None and folder.resolve() == Path(self.args.save).resolve()
        told = integrity.read_tracker(folder)
        if not own and told == "damaged":
            raise MooError("is damaged", str(folder / integrity.TRACKER), "write the step to load into it")
        step: int | str | None = integrity.choose_step(folder) if own else told
        if step is None:
            return None
        if own and step != told:
            halves = integrity.incomplete(folder)
            note = f" ({', '.join(halves)} was not finished)" if halves else ""
            _warn(f"{folder / integrity.TRACKER}: says {told!r}; going on from step {step}{note}")
            integrity.write_atomically(folder / integrity.TRACKER, str(step))
        chosen: int | str = asked or step
        found = folder / chosen if isinstance(chosen, str) else integrity.step_folder(folder, chosen)
        if not found.is_dir():
            raise MooError(f"there is no checkpoint of step {chosen}", str(folder))
        if not (found / integrity.CHECKSUMS).exists():
            _warn(f"{found}: has no {integrity.CHECKSUMS}, so that damage would not be seen")
        return found

    # Saving -----------------------------------------------------------------------------------------------------------

    def _save(self, stock: Callable[..., Any], iteration: int, *args: Any, **kw: Any) -> Any:
        folder = Path(self.args.save)
        checkpoint = integrity.step_folder(folder, iteration)
        started = time.perf_counter()
        DOING.enter(f"saving the checkpoint of step {iteration}")
        try:
            # The half of an earlier save, or an older checkpoint of this step: its list would outlive its files.
            if dist.get_rank() == 0:
                integrity.discard(checkpoint)
            dist.barrier()
            result = stock(iteration, *args, **kw)
        except MooError:
            raise
        except (Exception, CheckpointException) as error:  # torch's is no Exception
            if peer_is_lost(error):
                raise
            raise save_error(checkpoint, error) from error
        DOING.leave()
        if dist.get_rank() == 0:
            self._tell_save(iteration, time.perf_counter() - started)
        return result

    def _tell_save(self, iteration: int, seconds: float) -> None:
        self._event("save", step=iteration, seconds=round(seconds, 3))
        grace = float(os.environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", _GRACE_S))
        if "TORCHELASTIC_RUN_ID" in os.environ and seconds > grace:
            self._warn(
                iteration,
                f"saving took {seconds:.0f} s, torchrun kills ranks {grace:.0f} s after a signal: a run that is asked "
                f"to end would lose its last steps; set TORCH_ELASTIC_SHUTDOWN_TIMEOUT to {2 * seconds:.0f} or more",
            )

    def _saved(self, folder: Path) -> None:
        if self.args.moo_keep_last is not None:
            for failure in integrity.prune(folder, self.args.moo_keep_last):
                self._warn(int(self.args.curr_iteration), failure)


def save_error(checkpoint: Path, error: BaseException) -> MooError:
    """What a failed save is told as: where, how much room there is, and what is left to go on from."""
    place = checkpoint.parent
    while not place.exists():
        place = place.parent
    disk = shutil.disk_usage(place)
    left = integrity.complete_steps(checkpoint.parent) if checkpoint.parent.exists() else []
    return MooError(
        f"the checkpoint could not be written ({_reason(error)}); {disk.free} of {disk.total} bytes are free there",
        str(checkpoint),
        f"step {left[-1]} is complete: make room and start the run again" if left else "make room",
    )


def _reason(error: BaseException) -> str:
    """The innermost cause, in its first line; of several ranks' errors the first that is one."""
    if isinstance(error, CheckpointException):
        for rank, (cause, _) in sorted(error.failures.items()):
            return f"rank {rank}: {_reason(cause)}"
        return "another rank failed"
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__ or error
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _from_first(make: Callable[[], Path | None]) -> Path | None:
    """What ``make`` returns or raises on the first rank, on every rank."""
    told: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            told[0] = make()
        except MooError as error:
            told[1] = error.args[0]
    dist.broadcast_object_list(told, src=0)
    if told[1] is not None:
        raise MooError(told[1])
    return told[0]


def _verify_together(checkpoint: Path) -> None:
    """Every rank hashes its part of the files; all of them refuse what one found damaged."""
    mine: tuple[list[str], str | None]
    try:
        mine = (integrity.damaged(checkpoint, dist.get_rank(), dist.get_world_size()), None)
    except MooError as error:
        mine = ([], str(error))
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, mine)
    for _, told in every:
        if told is not None:
            raise MooError(told)
    if names := sorted(name for found, _ in every for name in found):
        raise integrity.damage_error(checkpoint, names)


def _warn(text: str) -> None:
    sys.stderr.write(f"megatron-moo: warning: {text}\n")
