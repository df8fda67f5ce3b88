"""Faults that a rank of a test inflicts on itself."""

from __future__ import annotations

import functools
import os
import signal
from pathlib import Path
from typing import Any

import torch.distributed as dist


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_in_save(point: str, step: int) -> None:
    """SIGKILL the first rank at a point of the save of ``step``."""
    from megatron.core.dist_checkpointing import serialization
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    from megatron_moo.training import integrity, seam_checkpoints

    def at(place: str, checkpoint: Path) -> None:
        if point == place and dist.get_rank() == 0 and checkpoint.name == f"iter_{step:07d}":
            _die()

    if point == "a shard written":
        stock_write = filesystem_async._write_item

        @functools.wraps(stock_write)  # Megatron looks at its signature
        def write(*args: Any, **kw: Any) -> Any:
            result = stock_write(*args, **kw)
            stream = next(part for part in args if hasattr(part, "fileno"))
            stream.flush()
            at(point, Path(stream.name).parent)
            return result

        filesystem_async._write_item = write
    finish = filesystem_async.FileSystemWriterAsync.finish

    def before_metadata(self: Any, *args: Any, **kw: Any) -> None:
        at("before .metadata", Path(self.checkpoint_dir))
        finish(self, *args, **kw)

    filesystem_async.FileSystemWriterAsync.finish = before_metadata  # type: ignore[method-assign]
    config = serialization.save_config

    def after_config(*args: Any, **kw: Any) -> None:
        config(*args, **kw)
        at("before the checksums", Path(args[1]))

    serialization.save_config = after_config
    in_one_piece = seam_checkpoints.write_atomically

    def tracker(path: Path, text: str) -> None:
        at("before the tracker", integrity.step_folder(path.parent, int(text)))
        if point == "tracker half written" and text == str(step):
            path.write_text("")  # what Megatron's own open(…, "w") leaves
            _die()
        in_one_piece(path, text)

    seam_checkpoints.write_atomically = tracker


def limit_file_size(step: int, size: int, ranks: tuple[int, ...]) -> None:
    """From ``step`` on no file of these ranks may grow beyond ``size`` bytes (root too)."""
    import resource

    from megatron_moo.training.run import TrainingRun

    stock = TrainingRun._say_step

    def say(self: Any, number: int) -> None:
        if number + 1 == step and dist.get_rank() in ranks:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        stock(self, number)

    TrainingRun._say_step = say  # type: ignore[method-assign]


def stop_in_exchange(step: int, rank: int, seconds: float) -> None:
    """In ``step`` a rank does not send a bucket: it waits ``seconds`` in its all-to-all, then stops (SIGSTOP)."""
    import time

    from megatron_moo.buckets.doing import DOING

    stock = dist.all_to_all_single

    class NeverSent:
        def wait(self) -> None:
            time.sleep(seconds)  # so that the watchdog tells the others where it is
            os.kill(os.getpid(), signal.SIGSTOP)

    def send(*args: Any, **kw: Any) -> Any:
        return NeverSent() if dist.get_rank() == rank and DOING.step >= step else stock(*args, **kw)

    dist.all_to_all_single = send


def slow_writer(seconds: float) -> None:
    """Every file of a checkpoint takes ``seconds`` longer, while training goes on."""
    import time

    from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync

    stock = FileSystemWriterAsync.write_preloaded_data

    def write(*args: Any, **kw: Any) -> Any:
        time.sleep(seconds)
        return stock(*args, **kw)

    FileSystemWriterAsync.write_preloaded_data = staticmethod(functools.wraps(stock)(write))


def multiply_loss(step: int, language: str, factor: float) -> None:
    """The loss of one language is ``factor`` times what it was, in one step."""
    from megatron_moo.training.run import TrainingRun

    stock = TrainingRun._record

    def record(self: Any, batch: dict[str, Any], training: bool) -> Any:
        book = stock(self, batch, training)
        here = (
            training
            and int(self.args.curr_iteration) + 1 == step
            and self.seen[batch["language"]] == language
        )
        return (lambda tag, loss, tokens: book(tag, loss * factor, tokens)) if here else book

    TrainingRun._record = record  # type: ignore[method-assign]


def bad_gradient(language: str, value: float, steps: range) -> None:
    """The loss of one language, and so its gradient, is not finite in these steps."""
    from megatron_moo.training import run

    stock = run.forward_step

    def step(data_iterator: Any, model: Any, **kw: Any) -> Any:
        seen: list[Any] = []

        class Spy:
            def __next__(self) -> Any:
                seen.append(next(data_iterator))
                return seen[-1]

        output, loss_func = stock(Spy(), model, **kw)
        from megatron.training import get_args

        from megatron_moo.data import load_manifest

        args = get_args()
        tags = tuple(load_manifest(args.languages).languages)
        hit = model.training and int(args.curr_iteration) + 1 in steps
        if not hit or tags[seen[-1]["language"]] != language:
            return output, loss_func

        def bad(*args: Any, **kw: Any) -> Any:
            loss, *rest = loss_func(*args, **kw)
            return (loss * value, *rest)

        return output, bad

    run.forward_step = step
