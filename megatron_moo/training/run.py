"""One rank's training run: what Megatron's ``pretrain()`` is given."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron_moo.buckets.lanes import find_lanes
from megatron_moo.buckets.modes import make_step_class
from megatron_moo.buckets.placement import peer_groups
from megatron_moo.buckets.seam import Seam, check_version
from megatron_moo.data import (
    LaneBatches,
    LaneSchedule,
    LanguageSampler,
    ValidationBatches,
    load_manifest,
    open_corpus,
    plan_shares,
)
from megatron_moo.errors import MooError
from megatron_moo.models.gpt import build_model
from megatron_moo.models.lora import check_selected
from megatron_moo.training import platform
from megatron_moo.training.arguments import lane_count, moo_config
from megatron_moo.training.forward import Record, forward_step
from megatron_moo.training.metrics import LossBook, MetricsWriter
from megatron_moo.training.support import check_supported


class TrainingRun:
    """Connects manifest, corpus, schedule, MOO and metrics to Megatron.

    Args:
        args: Megatron's parsed and validated arguments with ours.
    """

    def __init__(self, args: Any) -> None:
        check_version()
        self.args = args
        self.manifest = load_manifest(args.languages)
        self.corpus = open_corpus(args.corpus)
        objectives = self.manifest.objectives
        config = moo_config(args, len(objectives))
        self.lanes = lane_count(args)
        self.sampler = LanguageSampler(self.corpus, "train", args.seq_length, args.seed)
        budget = (args.train_iters or 0) * args.global_batch_size * args.seq_length
        self.shares = plan_shares(self.manifest, self.sampler, args.moo_presence, budget or None)
        self.schedule = LaneSchedule(
            objectives=len(objectives),
            lanes=self.lanes,
            slots=config.slots,
            seed=args.seed,
            presence=args.moo_presence,
            shares=self.shares.objectives,
        )
        check_supported(args)
        step_class = make_step_class(config.observe, config.every)
        self.step = step_class(
            config, _method(config), objectives, self.schedule, _preference(self.manifest.preference())
        )
        self.seen, self.unseen = tuple(self.manifest.languages), tuple(self.manifest.unseen)
        self.metrics = MetricsWriter(Path(args.run_dir), self.step, self.seen)
        self.step.losses_of = self._objective_losses
        self.validation_book = LossBook(len(self.seen) + len(self.unseen))
        self.batches: LaneBatches | None = None
        self._restored: dict[str, Any] = {}
        self._validations: list[ValidationBatches] = []
        self._last_validation = -1
        self.seam = Seam(self.step, lambda: int(args.curr_iteration))
        self.seam.on_training_log(self._log)
        self.seam.carry_state(self._save, self._load)
        self.seam.initialise_in(platform.initialising)
        self.seam.before_first_step = self._validate_untrained
        self.seam.around_forward = self._booked

    # What Megatron calls --------------------------------------------------------------------------------------------

    def model_provider(self, **kw: Any) -> Any:
        """Build this rank's part of the model."""
        return build_model(self.args, **kw)

    def datasets(self, _samples: Any, vp_stage: int | None = None) -> tuple[Iterator, Iterator, None]:
        """Training and validation iterators; every rank reads its own batches from the mapped corpus."""
        from megatron.core import parallel_state as ps

        dp_rank, dp_size = ps.get_data_parallel_rank(), ps.get_data_parallel_world_size()
        lanes = find_lanes(peer_groups(ps), dp_rank)
        if lanes.count != self.lanes:
            raise MooError(f"{lanes.count} lanes were found, {self.lanes} expected", "parallel sizes")
        args = self.args
        own = args.global_batch_size // (args.micro_batch_size * dp_size * self.step.config.slots)
        batches = LaneBatches(
            self.sampler,
            self.schedule,
            self.manifest,
            lane=lanes.lane,
            peer=lanes.peer,
            peers=lanes.peers,
            micro_batch_size=args.micro_batch_size,
            micro_batches=own * lanes.peers,
            seed=args.seed,
            shares=self.shares,
        )
        if "data" in self._restored:
            batches.load_state_dict(self._restored["data"])
        self.batches = batches
        valid = ValidationBatches(
            LanguageSampler(self.corpus, "valid", args.seq_length, args.seed),
            self.seen + self.unseen,
            dp_rank,
            dp_size,
            args.micro_batch_size,
        )
        self._validations.append(valid)
        return iter(batches), iter(valid), None

    datasets.is_distributed = True  # type: ignore[attr-defined]

    def forward_step(self, data_iterator: Any, model: Any) -> tuple[torch.Tensor, Any]:
        """One micro-batch; its loss is booked per language."""
        return forward_step(data_iterator, model, record=lambda batch: self._record(batch, model.training))

    def end(self) -> None:
        """Say in the metrics that the run is complete, and leave the process group. A collective call."""
        self.metrics.event("end", step=int(self.args.curr_iteration) + 1)
        dist.barrier()
        dist.destroy_process_group()

    def remove(self) -> None:
        """Take MOO out of this process again."""
        self.seam.remove()

    def after_validation(self, model: Any) -> None:
        """Write the validation losses of a pass over every language (Megatron's ``non_loss_data_func``)."""
        device = torch.device(torch.cuda.current_device())
        sums = self.validation_book.take(device)
        dist.all_reduce(sums)
        loss, bits = {}, {}
        for tag, (total, tokens) in zip(self.seen + self.unseen, sums.tolist(), strict=True):
            loss[tag] = total / tokens
            bits[tag] = total / math.log(2) / self.corpus.stream(tag, "valid").bytes
        step = self._validated_step()
        if step == self._last_validation:
            return  # Megatron validates once more after the last step
        self._last_validation = step
        self.metrics.event(
            "valid",
            step=step,
            loss=loss,
            bits_per_byte=bits,
            seen=self.seen,
            unseen=self.unseen,
        )

    # ----------------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _validate_untrained(self, schedule: Any, kw: dict[str, Any]) -> None:
        """Validate before the first step: Megatron itself validates only after some."""
        self.metrics.event(
            "start", step=0, train_iters=self.args.train_iters, shares=self.shares.tokens, **self.step.cost()
        )
        chunks = kw["model"] if isinstance(kw["model"], list) else [kw["model"]]
        for chunk in chunks:
            chunk.eval()
        iterators = [iter(valid) for valid in self._validations]
        data = iterators if len(iterators) > 1 else iterators[0]
        count = len(self._validations[0])
        schedule(**{**kw, "data_iterator": data, "num_microbatches": count, "forward_only": True})
        self.after_validation(chunks)
        for chunk in chunks:
            chunk.train()

    def _validated_step(self) -> int:
        # Megatron counts iterations from 1 when it logs and from 0 while a step runs.
        return int(self.args.curr_iteration) + (1 if self.step.last is not None else 0)

    def _booked(self, forward: Callable[..., tuple]) -> Callable[..., tuple]:
        """A team's own forward step whose reported ``lm loss`` is booked under the language of the batch it drew."""
        if forward == self.forward_step:
            return forward

        def call(data_iterator: Any, model: Any, *rest: Any) -> tuple:
            drawn = _Remembering(data_iterator)
            check_selected(model, self.args)
            output, loss_func = forward(drawn, model, *rest)
            if drawn.last is None or "language" not in drawn.last:
                raise MooError("its batches name no language", "forward step", "give pretrain() moo.datasets")
            record = self._record(drawn.last, model.training)

            def booked(*args: Any, **kw: Any) -> tuple:
                result = loss_func(*args, **kw)
                loss, tokens = result[-1]["lm loss"].detach().unbind()
                record(drawn.last["language"], loss, tokens)
                return result

            return output, booked

        return call

    def _record(self, batch: dict[str, Any], training: bool) -> Record:
        from megatron.core import parallel_state as ps

        if training and batch["objective"] != self.step.objective:
            raise MooError(
                f"lane {self.seam.lanes.lane if self.seam.lanes else '?'} was given objective "
                f"{self.step.objectives[batch['objective']]!r}, the schedule says "
                f"{self.step.objectives[self.step.objective]!r}",
                f"step {self.args.curr_iteration}",
            )
        if ps.get_tensor_model_parallel_rank() != 0 or (training and not self.step.now.first):
            return lambda *_: None
        return (self.metrics.book if training else self.validation_book).add

    def _objective_losses(self, riders: list[torch.Tensor]) -> torch.Tensor:
        """Mean loss per objective, ``[K]``, from the summed losses and tokens of its languages."""
        sums = riders[0].new_zeros(len(self.manifest.objectives), 2)
        index = [self.manifest.objective_of[tag] for tag in self.seen]
        sums.index_add_(0, torch.tensor(index, device=sums.device), riders[0])
        return sums[:, 0] / sums[:, 1].clamp(min=1.0)

    def _log(self, **kw: Any) -> None:
        if self.batches is not None:
            self.metrics.drawn = self.batches.drawn()
        self.metrics.log_step(**kw)

    def _save(self) -> dict[str, Any]:
        state: dict[str, Any] = {"step": self.step.state_dict()}
        if self.batches is not None:
            state["data"] = self.batches.state_dict()
        return state

    def _load(self, state: dict[str, Any]) -> None:
        before, now = state.get("data", {}).get("L", self.schedule.positions), self.schedule.positions
        if before != now:
            raise MooError(
                f"the checkpoint was made with {before} places a step (slots x lanes), this run has {now}",
                "--moo-slots",
                f"choose slots and ranks so that their product is {before}",
            )
        self._restored = state
        self.step.load_state_dict(state["step"])


class _Remembering:
    """An iterator that remembers what it gave last."""

    def __init__(self, iterator: Any) -> None:
        self._iterator = iterator
        self.last: Any = None

    def __next__(self) -> Any:
        self.last = next(self._iterator)
        return self.last


def _method(config: Any) -> Any:
    from megatron_moo.moo import METHODS, make_method

    options = dict(config.options)
    if "seed" in METHODS[config.method.split(":")[-1]].options:
        options.setdefault("seed", config.seed)
    return make_method(config.method, **options)


def _preference(values: tuple[float, ...]) -> torch.Tensor | None:
    """Preference of every objective, ``[K]`` fp64, or None when all are equal."""
    if max(values) - min(values) <= 1e-12:
        return None
    return torch.tensor(values, dtype=torch.float64)
