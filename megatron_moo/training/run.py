"""One rank's training run: what Megatron's ``pretrain()`` is given."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron_moo.buckets.doing import DOING
from megatron_moo.buckets.lanes import find_lanes
from megatron_moo.buckets.modes import make_step_class
from megatron_moo.buckets.placement import peer_groups
from megatron_moo.buckets.seam import Seam, check_version
from megatron_moo.data import ValidationBatches, load_manifest, open_corpus
from megatron_moo.errors import MooError
from megatron_moo.models.gpt import build_model
from megatron_moo.models.lora import check_selected
from megatron_moo.training import platform
from megatron_moo.training.arguments import lane_count, moo_config
from megatron_moo.training.checkpoints import Checkpoints
from megatron_moo.training.evaluation import Evaluation, early_stopping
from megatron_moo.training.feed import Feed
from megatron_moo.training.forward import Record, forward_step
from megatron_moo.training.metrics import MetricsWriter
from megatron_moo.training.mixed import MixedStep
from megatron_moo.training.same import bucket_facts, check_same, facts_of
from megatron_moo.training.watchdog import Watchdog, leave, own_store


class TrainingRun:
    """Connects manifest, corpus, schedule, MOO and metrics to Megatron.

    Args:
        args: Megatron's parsed and validated arguments with ours, which ``install()`` has checked.
    """

    def __init__(self, args: Any) -> None:
        check_version()
        self.args = args
        self.manifest = load_manifest(args.languages)
        self.corpus = open_corpus(args.corpus)
        objectives = self.manifest.objectives
        config = moo_config(args, len(objectives))
        self.lanes = lane_count(args)
        self.feed = Feed(args, self.manifest, self.corpus, self.lanes, config.slots)
        step_class = MixedStep if args.moo_mixed else make_step_class(config.observe, config.every)
        self.step = step_class(
            config, _method(config), objectives, self.feed, _preference(self.manifest.preference())
        )
        self.seen, self.unseen = tuple(self.manifest.languages), tuple(self.manifest.unseen)
        self.metrics = MetricsWriter(Path(args.run_dir), self.step, self.seen)
        self.step.losses_of = self._objective_losses
        self.stopping = early_stopping(args, self.seen + self.unseen)
        self.evaluation = Evaluation(self.corpus, self.seen, self.unseen, self.metrics, self.stopping)
        self._validations: list[ValidationBatches] = []
        self._told_drawn = -1
        self.seam = Seam(self.step, lambda: int(args.curr_iteration))
        self.step.on_end.append(self._tell_blocks)
        self.seam.on_training_log(self._log)
        self.seam.carry_state(self._save, self._load)
        self.seam.initialise_in(self._initialising)
        self.seam.after_evaluation(self.after_validation)
        self.seam.at_the_end(self.finish, self.close)
        self._finished = False
        self.checkpoints = Checkpoints(args, self.metrics.event, self.metrics.warn, self._asked_to_end)
        self.watchdog: Watchdog | None = None
        self.step.on_begin.append(self._say_step)
        self.step.on_end.append(lambda: DOING.enter("the optimizer's step"))
        self.seam.before_first_step = self._begin
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
        batches = self.feed.train(dp_rank, dp_size, lanes.lane, lanes.peer, lanes.peers)
        valid = self.feed.valid(dp_rank, dp_size)
        self._validations.append(valid)
        if self.stopping is not None and self.stopping.exhausted:
            self.args.train_iters = int(self.args.iteration)  # it ended here before
        return iter(batches), iter(valid), None

    datasets.is_distributed = True  # type: ignore[attr-defined]

    def forward_step(self, data_iterator: Any, model: Any) -> tuple[torch.Tensor, Any]:
        """One micro-batch; its loss is booked per language."""
        return forward_step(data_iterator, model, record=lambda batch: self._record(batch, model.training))

    def finish(self) -> None:
        """Say in the metrics that the run is complete, and to the other ranks that this one ends. A collective call.

        ``pretrain()`` does so when it is done; only the first call does anything.
        """
        if self._finished:
            return
        self._finished = True
        step = self._validated_step()
        self._tell_drawn(step)
        self.metrics.event("end", step=step)
        dist.barrier()
        self.close()

    def end(self) -> None:
        """:meth:`finish`, and leave the process group. A collective call that a script may leave out."""
        self.finish()
        if dist.is_initialized():
            dist.destroy_process_group()

    def close(self) -> None:
        """Tell the other ranks that this one ends as it should."""
        if self.watchdog is not None:
            self.watchdog.end()

    def remove(self) -> None:
        """Take MOO out of this process again."""
        self.checkpoints.remove()
        self.seam.remove()

    def after_validation(self, model: Any) -> None:
        """Tell a pass over every language and what was drawn (Megatron's ``non_loss_data_func``); maybe stop."""
        step = self._validated_step()
        if not self.evaluation.finish(step):
            return
        self._tell_drawn(step)
        if step < self.args.train_iters and self.evaluation.stop(step):
            self.args.train_iters = step  # Megatron's loop ends here, with a checkpoint

    # ----------------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _initialising(self) -> Iterator[None]:
        """Around ``initialize_megatron``: then the ranks know each other, and nothing was built or loaded yet."""
        with platform.initialising():
            yield
        check_same(facts_of(self.args, self.manifest, self.corpus))
        rank, world, timeout = dist.get_rank(), dist.get_world_size(), float(self.args.moo_timeout)
        if world > 1 and timeout > 0:
            self.watchdog = Watchdog(rank, world, timeout, own_store, leave)
            self.watchdog.begin()
        self.checkpoints.check()

    def _asked_to_end(self, ranks: list[int]) -> None:
        """Some ranks got SIGTERM: all of them save now and leave."""
        self.metrics.event("signal", step=self._validated_step(), ranks=ranks)

    def _say_step(self, step: int) -> None:
        DOING.step = step + 1
        DOING.leave()

    def _begin(self, schedule: Any, kw: dict[str, Any]) -> None:
        """Say what a step costs and, in a new run, where it starts from."""
        from megatron.core import parallel_state as ps

        place = (ps.get_tensor_model_parallel_rank(), ps.get_pipeline_model_parallel_rank())
        check_same(bucket_facts(self.step.plans, self.step.block_names), group=str(place))
        step = int(self.args.curr_iteration)
        # The corpus lies where its manifest does and may hold other text when somebody looks later.
        text = {"corpus": self.corpus.fingerprint}
        known = {"step": step, "train_iters": self.args.train_iters, **text, **self.step.cost()}
        if step:
            self.metrics.event("resume", **known)
            if self.feed.batches is not None and self.feed.batches.begun_anew:
                self.metrics.warn(step, self.feed.batches.begun_anew)
            return
        self.metrics.event("start", **known, shares=self.feed.shares.tokens, notes=self.feed.notes)
        self._validate_untrained(schedule, kw)

    @torch.no_grad()
    def _validate_untrained(self, schedule: Any, kw: dict[str, Any]) -> None:
        """Validate before the first step: Megatron itself validates only after some."""
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

    def _tell_blocks(self) -> None:
        """An event when ``--moo-block auto`` has changed what shares a set of weights."""
        auto = self.step.solver.auto
        if auto is not None and self.step.solver.changed:
            groups = {
                name: [auto.modules[index] for index in group]
                for name, group in zip(auto.names, auto.groups, strict=True)
            }
            self.metrics.event("blocks", step=int(self.args.curr_iteration) + 1, groups=groups)

    def _tell_drawn(self, step: int) -> None:
        """Asked against drawn, once a step."""
        if step != self._told_drawn:
            self._told_drawn = step
            self.metrics.tell_drawn(step, self.feed.report())

    def _validated_step(self) -> int:
        # Megatron counts iterations from 1 when it logs and from 0 while a step runs.
        return int(self.args.curr_iteration) + (1 if self.step.last is not None else 0)

    def _booked(self, forward: Callable[..., tuple]) -> Callable[..., tuple]:
        """A team's own forward step whose reported ``lm loss`` is booked under the language of the batch it drew."""
        if forward == self.forward_step:
            return forward

        def call(data_iterator: Any, model: Any, *rest: Any) -> tuple:
            if self.feed.mixed:
                raise MooError("needs megatron_moo's forward step, to tell languages apart", "--moo-mixed")
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

        DOING.language = self.step.objectives[self.step.objective] if training and not self.feed.mixed else ""
        if not training:
            DOING.enter("validation")
        if training and batch.get("objective", self.step.objective) != self.step.objective:
            raise MooError(
                f"lane {self.seam.lanes.lane if self.seam.lanes else '?'} was given objective "
                f"{self.step.objectives[batch['objective']]!r}, the schedule says "
                f"{self.step.objectives[self.step.objective]!r}",
                f"step {self.args.curr_iteration}",
            )
        if ps.get_tensor_model_parallel_rank() != 0 or (training and not self.step.now.first):
            return lambda *_: None
        return (self.metrics.book if training else self.evaluation.book).add

    def _objective_losses(self, riders: list[torch.Tensor]) -> torch.Tensor:
        """Mean loss per objective, ``[K]``, from the summed losses and tokens of its languages."""
        sums = riders[0].new_zeros(len(self.manifest.objectives), 2)
        index = [self.manifest.objective_of[tag] for tag in self.seen]
        sums.index_add_(0, torch.tensor(index, device=sums.device), riders[0])
        return sums[:, 0] / sums[:, 1].clamp(min=1.0)

    def _log(self, **kw: Any) -> None:
        self.metrics.drawn = self.feed.drawn()
        sent = self.seam.exchange
        self.metrics.log_step(**kw, bytes_sent=sent.bytes_sent, bytes_between_nodes=sent.bytes_between_nodes)

    def _save(self) -> dict[str, Any]:
        state: dict[str, Any] = {"step": self.step.state_dict(), "objectives": list(self.step.objectives)}
        if (data := self.feed.state_dict()) is not None:
            state["data"] = data
        if self.stopping is not None:
            state["early_stop"] = self.stopping.state_dict()
        state["spikes"] = self.metrics.spikes.state_dict()
        return state

    def _load(self, state: dict[str, Any]) -> None:
        if "data" in state:
            self.feed.check_places(state["data"], str(self.args.load), asked_for=self.args.moo_other_places)
            self.feed.load_state_dict(state["data"])
        if self.stopping is not None and "early_stop" in state:
            self.stopping.load_state_dict(state["early_stop"])
        if "spikes" in state:
            self.metrics.spikes.load_state_dict(state["spikes"])
        moo = state["step"]
        if tuple(state.get("objectives", self.step.objectives)) != self.step.objectives:
            # What a method remembers is per objective: with others it starts anew, as the law does.
            moo = {**self.step.state_dict(), "members": moo.get("members", "")}
        self.step.load_state_dict(moo)


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
