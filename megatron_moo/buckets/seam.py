"""The seam: with its two parts the only code that knows private names of Megatron-Core.

Bucket-Level MOO enters Megatron at four places, none of them patched in the wheel:

1. ``param_and_grad_buffer.reduce_scatter_with_fp32_accumulation``: what a bucket group calls as its reduce-scatter
   when the DDP config says so. Ours is an :class:`~megatron_moo.buckets.exchange.Exchange`.
2. ``training.get_forward_backward_func``: one call is one pass over the micro-batches of a slot; a step calls the
   schedule once for each of its passes.
3. ``config.finalize_model_grads_func``: the end of the backward pass. Ours drains the buckets and resolves the
   conflict before Megatron's own sums partial gradients.
4. ``training.training_log`` and the learning-rate scheduler's state: where a step is reported and state is saved.

What it asks of the optimizer stands in ``seam_optimizer.py``, what it replaces in checkpoints in
``training/seam_checkpoints.py``.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any

import torch

from megatron_moo.buckets.exchange import Exchange
from megatron_moo.buckets.hierarchy import find_hierarchies, nodes_of_ranks
from megatron_moo.buckets.lanes import Lanes, find_lanes
from megatron_moo.buckets.placement import (
    bucket_groups,
    group_timeout,
    peer_groups,
    plan_buckets,
    refuse_averaged,
)
from megatron_moo.buckets.replay import Replay
from megatron_moo.buckets.seam_optimizer import (
    OPTIMIZER_NAMES,
    adam_scale,
    make_resumable,
    skip_when_all_dropped,
)
from megatron_moo.buckets.step import MooStep
from megatron_moo.errors import MooError

SUPPORTED_VERSION = "0.19.2"

_BUFFER = "megatron.core.distributed.param_and_grad_buffer"
_TRAINING = "megatron.training.training"
# Its finish() is the last that pretrain() calls.
_LAST = "megatron.training.one_logger_utils"

# Every name that is not part of Megatron's public interface, as module (and class), attribute.
PRIVATE_NAMES: tuple[tuple[str, str], ...] = (
    (_BUFFER, "reduce_scatter_with_fp32_accumulation"),
    (_BUFFER, "dist_reduce_scatter_func"),
    (_BUFFER, "_ParamAndGradBucketGroup.start_grad_sync"),
    (_BUFFER, "_ParamAndGradBucketGroup.finish_grad_sync"),
    ("megatron.core.distributed.distributed_data_parallel", "DistributedDataParallel.finish_grad_sync"),
    ("megatron.core.distributed.distributed_data_parallel", "DistributedDataParallel.zero_grad_buffer"),
    *OPTIMIZER_NAMES,
    (_TRAINING, "get_forward_backward_func"),
    (_TRAINING, "get_optimizer_param_scheduler"),
    (_TRAINING, "train"),
    (_TRAINING, "evaluate_and_print_results"),
    (_LAST, "finish"),
    (_TRAINING, "training_log"),
    (_TRAINING, "wrap_model_chunks_with_ddp"),
    (_TRAINING, "initialize_megatron"),
    (_TRAINING, "pretrain"),
)


def check_version() -> None:
    """Refuse a Megatron-Core that the seam was not written for.

    Raises:
        MooError: for another version, or a name that is not where it was.
    """
    found = version("megatron-core")
    if found != SUPPORTED_VERSION:
        raise MooError(
            f"megatron-core {found} is installed, megatron_moo works with {SUPPORTED_VERSION}",
            "megatron-core",
            f"pip install megatron-core=={SUPPORTED_VERSION}",
        )
    for missing in missing_names():
        raise MooError(f"{missing} is not where megatron-core {SUPPORTED_VERSION} has it", "seam.py")


def missing_names() -> list[str]:
    """The private names that the installed Megatron-Core lacks."""
    missing = []
    for module, path in PRIVATE_NAMES:
        place: Any = importlib.import_module(module)
        for name in path.split("."):
            place = getattr(place, name, None)
        if place is None:
            missing.append(f"{module}.{path}")
    return missing


class Seam:
    """Connects a :class:`MooStep` to Megatron's training; :meth:`remove` restores what was there.

    Args:
        step: the rank's part of Bucket-Level MOO.
        current_step: the number of the step under way, counted from 0.
    """

    def __init__(self, step: MooStep, current_step: Callable[[], int]) -> None:
        self.step, self.current_step = step, current_step
        self.lanes: Lanes | None = None
        self.around_forward: Callable[[Callable], Callable] = lambda forward_step: forward_step
        self.before_first_step: Callable[[Callable[..., list], dict[str, Any]], None] | None = None
        self._chunks: list[Any] = []
        self._tokens: torch.Tensor | None = None
        self._undo: list[Callable[[], None]] = []
        buffer = importlib.import_module(_BUFFER)
        self.exchange = Exchange(
            step, torch.distributed.reduce_scatter_tensor, buffer.reduce_scatter_with_fp32_accumulation
        )
        self._replace(buffer, "reduce_scatter_with_fp32_accumulation", self.exchange)
        # DDP's constructor writes the same into this global when the flag is set; with several optimizer instances
        # Megatron forbids the flag, and the global is the only way in.
        self._replace(buffer, "dist_reduce_scatter_func", self.exchange)
        training = importlib.import_module(_TRAINING)
        self._replace(
            training,
            "wrap_model_chunks_with_ddp",
            _checked(_bucketing_kept(training.wrap_model_chunks_with_ddp)),
        )
        get = training.get_forward_backward_func
        self._replace(
            training, "get_forward_backward_func", lambda *args, **kw: self.wrap_schedule(get(*args, **kw))
        )

    def remove(self) -> None:
        """Put back everything that was replaced."""
        while self._undo:
            self._undo.pop()()

    def _replace(self, owner: Any, name: str, new: Any) -> None:
        self._undo.append(partial(setattr, owner, name, getattr(owner, name)))
        setattr(owner, name, new)

    def initialise_in(self, context: Callable[[], contextlib.AbstractContextManager]) -> None:
        """Let ``pretrain()`` call ``initialize_megatron`` inside ``context()`` (the CPU platform needs one)."""
        training = importlib.import_module(_TRAINING)
        stock = training.initialize_megatron

        def initialise(*args: Any, **kw: Any) -> Any:
            with context():
                return stock(*args, **kw)

        self._replace(training, "initialize_megatron", initialise)

    def at_the_end(self, ended: Callable[[], None], left: Callable[[], None]) -> None:
        """Call ``ended()`` when ``pretrain()`` is done, so that a script has nothing more to call.

        ``left()`` is called instead where Megatron itself leaves in the midst of training (a signal, a limit), and
        neither where something is raised: such a run is not complete.
        """
        training, last = importlib.import_module(_TRAINING), importlib.import_module(_LAST)
        train, finish = training.train, last.finish
        inside = False

        def around(*args: Any, **kw: Any) -> Any:
            nonlocal inside
            inside = True
            try:
                result = train(*args, **kw)
            except SystemExit:
                left()
                raise
            inside = False
            return result

        def done() -> None:
            finish()
            if not inside:  # Megatron calls it in the midst of training too, before it leaves
                ended()

        self._replace(training, "train", around)
        self._replace(last, "finish", done)

    def after_evaluation(self, call: Callable[[Any], Any]) -> None:
        """Call ``call(model)`` after every evaluation, beside or in place of a script's ``non_loss_data_func``."""
        training = importlib.import_module(_TRAINING)
        stock = training.evaluate_and_print_results

        def evaluate(prefix: str, forward_step: Any, data: Any, model: Any, iteration: int, process: Any,
                     *args: Any, **kw: Any) -> Any:  # fmt: skip
            theirs = kw.get("non_loss_data_func")

            def both(model: Any) -> Any:
                call(model)
                return theirs(model) if theirs is not None else None

            # With ``process`` alone Megatron collects what it processes, and only where no function is given.
            if theirs != call and (theirs is not None or process is None):
                kw["non_loss_data_func"] = both
            return stock(prefix, forward_step, data, model, iteration, process, *args, **kw)

        self._replace(training, "evaluate_and_print_results", evaluate)

    def on_training_log(self, report: Callable[..., None]) -> None:
        """Call ``report(iteration=, learning_rate=, grad_norm=, skipped=)`` after Megatron's own log of a step."""
        training = importlib.import_module(_TRAINING)
        stock = training.training_log

        def log(loss_dict: Any, total: Any, lr: Any, iteration: int, scale: Any, memory: Any, skipped: Any,
                grad_norm: Any, *args: Any, **kw: Any) -> Any:  # fmt: skip
            result = stock(loss_dict, total, lr, iteration, scale, memory, skipped, grad_norm, *args, **kw)
            report(iteration=iteration, learning_rate=lr, grad_norm=grad_norm, skipped=bool(skipped))
            return result

        self._replace(training, "training_log", log)

    def carry_state(self, save: Callable[[], dict], load: Callable[[dict], None]) -> None:
        """Keep ``save()`` in every checkpoint, beside the learning-rate scheduler's state, and ``load`` it back.

        Also shows the step Adam's second moments where its metric needs them, and lets a step in which no objective
        had a finite gradient pass without touching parameters and optimizer.
        """
        training = importlib.import_module(_TRAINING)
        stock = training.get_optimizer_param_scheduler

        def build(optimizer: Any) -> Any:
            skip_when_all_dropped(optimizer, self.step)
            make_resumable(optimizer)
            if self.step.config.metric == "adam":
                self.step.scale_of = partial(adam_scale, optimizer)
            scheduler = stock(optimizer)
            get, put = scheduler.state_dict, scheduler.load_state_dict

            def put_both(state: dict) -> None:
                state = dict(state)
                ours = state.pop("megatron_moo", None)
                # Ours first: what it refuses by name, the scheduler only calls another number of samples.
                if ours is not None:
                    load(ours)
                put(state)

            scheduler.state_dict = lambda: {**get(), "megatron_moo": save()}
            scheduler.load_state_dict = put_both
            return scheduler

        self._replace(training, "get_optimizer_param_scheduler", build)

    def wrap_schedule(self, schedule: Callable[..., list]) -> Callable[..., list]:
        """A schedule that runs the step's passes one after the other."""

        def run(**kw: Any) -> list:
            kw["forward_step_func"] = self.around_forward(kw["forward_step_func"])
            if kw.get("forward_only"):
                return schedule(**kw)
            chunks = kw["model"] if isinstance(kw["model"], list) else [kw["model"]]
            new = not self._chunks
            self._attach(chunks)
            if new and self.before_first_step is not None:
                self.before_first_step(schedule, kw)
            if kw.get("force_all_reduce"):
                raise MooError("an all-reduced gradient bypasses MOO", "--save-wgrads-interval", "remove it")
            slots = self.step.config.slots
            if self.step.config.observe and slots > 1 and not chunks[0].config.calculate_per_token_loss:
                raise MooError("with several slots needs --calculate-per-token-loss", "--moo-observe")
            if kw["num_microbatches"] % slots:
                raise MooError(
                    f"{kw['num_microbatches']} micro-batches do not split into {slots} slots",
                    "--global-batch-size",
                    "make it a multiple of slots x data-parallel size x micro-batch size",
                )
            kw["num_microbatches"] //= slots
            self.exchange.reset()
            self.step.begin(self.current_step())
            self._tokens = None
            return self._run_passes(schedule, kw, chunks)

        return run

    def _run_passes(self, schedule: Callable[..., list], kw: dict[str, Any], chunks: list[Any]) -> list:
        step, config, replay = self.step, chunks[0].config, None
        ahead = step.passes[0].scaled
        if ahead or not all(now.first for now in step.passes):
            replay = Replay(kw["data_iterator"], step.config.slots, kw["num_microbatches"])
            if ahead:
                self._look_ahead(replay.drawn[0], kw["num_microbatches"], config)
        losses: list = []
        stock, gather = config.finalize_model_grads_func, config.param_sync_func
        config.finalize_model_grads_func = partial(self._finalize, stock)
        try:
            for index, now in enumerate(step.passes):
                step.begin_pass(now)
                config.param_sync_func = gather_of_pass(index, gather)
                for chunk in chunks if index else []:
                    _begin_pass(chunk, zero=step.zeroes_between_passes)
                if replay is not None:
                    kw["data_iterator"] = replay.begin_pass(now.slot, now.first)
                reduced = schedule(**kw)
                losses += reduced if now.first else []
        finally:
            config.finalize_model_grads_func, config.param_sync_func = stock, gather
        if replay is not None:
            replay.end()
        return losses

    def _finalize(
        self,
        stock: Callable[..., None],
        model: list[Any],
        num_tokens: torch.Tensor | None = None,
        pg_collection: Any = None,
        force_all_reduce: bool = False,
    ) -> None:
        for chunk in model:
            chunk.finish_grad_sync()
        self.exchange.join()
        self.exchange.let_go()
        if self.step.now.first:
            self.step.count(1.0 / self._dp_cp_size if num_tokens is None else num_tokens)
            if num_tokens is not None:
                self._tokens = num_tokens if self._tokens is None else self._tokens + num_tokens
        self.step.end_pass()
        if not self.step.is_last:
            keep_parameters(model)
            return
        # Our update is a mean over tokens already; Megatron's own sum is divided by them as always.
        tokens = self._tokens if self.step.config.observe else None
        with finish_disabled(model):
            stock(model, tokens, pg_collection=pg_collection, force_all_reduce=force_all_reduce)

    def _look_ahead(self, drawn: list[Any], micro_batches: int, config: Any) -> None:
        """Tell the step the tokens of its batches before its first pass (a collective call)."""
        if config.calculate_per_token_loss:
            amounts = [float(batch["loss_mask"].sum()) for batch in drawn]
        else:
            # Each data-parallel rank counts its context-parallel peers' shares too.
            amounts = [self._cp_size / self._dp_cp_size / micro_batches for _ in drawn]
        self.step.look_ahead([amounts[i : i + micro_batches] for i in range(0, len(amounts), micro_batches)])

    def _attach(self, chunks: list[Any]) -> None:
        """Find lanes, blocks and buckets of the model once DDP has wrapped it; a collective call."""
        if self._chunks == chunks:
            return
        from megatron.core import parallel_state as ps

        instances = chunks[0].ddp_config.num_distributed_optimizer_instances
        if instances == 1 and not all(c.ddp_config.reduce_scatter_with_fp32_accumulation for c in chunks):
            raise MooError(
                "without it Megatron drops the exchange's handle and gradients stay unreduced",
                "--ddp-reduce-scatter-with-fp32-accumulation",
                "set it (megatron-moo train does)",
            )
        self._chunks = chunks
        self.lanes = find_lanes(peer_groups(ps), ps.get_data_parallel_rank())
        self._cp_size = ps.get_context_parallel_world_size()
        self._dp_cp_size = ps.get_data_parallel_world_size(with_context_parallel=True)
        plans, names, members = plan_buckets(
            chunks, self.step.config.block, self.lanes, self.step.config.exclude
        )
        config = self.step.config
        find_hierarchies(
            plans,
            "flat" if config.observe else config.exchange,
            config.wire,
            self.step.schedule,
            nodes_of_ranks(config.ranks_per_node),
            self.current_step(),
            group_timeout(),
        )
        self.exchange.register(plans)
        self.step.place(
            plans,
            names,
            members,
            self.lanes.lane,
            counts_tokens=ps.get_tensor_model_parallel_rank() == 0
            and ps.is_pipeline_last_stage(ignore_virtual=True),
            counts_ahead=ps.get_tensor_model_parallel_rank() == 0
            and ps.get_context_parallel_rank() == 0
            and ps.is_pipeline_first_stage(ignore_virtual=True),
            tp_group=ps.get_tensor_model_parallel_group(),
            embd_group=ps.get_embedding_group(check_initialized=False),
            world=torch.distributed.new_group(timeout=group_timeout()),
        )


def keep_parameters(chunks: Sequence[Any]) -> None:
    """Say that the parameters have not changed: the next pass must not gather them again."""
    for group in bucket_groups(chunks):
        group.param_gather_dispatched = True


def gather_of_pass(index: int, gather: Any) -> Any:
    """What the interleaved schedule calls to gather parameters, without asking whether they have changed.

    In a step's first pass that is Megatron's own ``config.param_sync_func``, in every other pass nothing.
    """
    return None if index else gather


def _begin_pass(chunk: Any, zero: bool) -> None:
    """What ``zero_grad_buffer`` does before a pass, with or without the zeroing."""
    if zero:
        chunk.zero_grad_buffer()
        return
    for param in chunk.params_with_grad:
        param.grad_added_to_main_grad = False
    for group in bucket_groups([chunk]):
        group.reset()


def _checked(stock: Callable[..., list]) -> Callable[..., list]:
    """Megatron's DDP wrapping after a look at the parameters: before an optimizer is built or a checkpoint read."""

    def wrap(model_chunks: list[Any], *args: Any, **kw: Any) -> list:
        for chunk in model_chunks:
            refuse_averaged((name.removeprefix("module."), param) for name, param in chunk.named_parameters())
        return stock(model_chunks, *args, **kw)

    return wrap


def _bucketing_kept(stock: Callable[..., list]) -> Callable[..., list]:
    """Megatron's DDP wrapping with one bucket in every group.

    It puts all buckets of a virtual pipeline chunk into one group, but its fp32 accumulation refuses a group with two
    buckets (the tied embedding has its own).
    """

    def wrap(*args: Any, **kw: Any) -> list:
        kw["disable_bucketing_per_chunk"] = None
        return stock(*args, **kw)

    return wrap


@contextlib.contextmanager
def finish_disabled(chunks: Sequence[Any]) -> Iterator[None]:
    """Let Megatron's finalize run without a second exchange (without overlap it would start one)."""
    for chunk in chunks:
        chunk.finish_grad_sync = lambda *args, **kw: None
    try:
        yield
    finally:
        for chunk in chunks:
            del chunk.finish_grad_sync
