"""The traps of DESIGN section 3, each with its handling taken out: a test must see the update go wrong."""

from __future__ import annotations

from typing import Any

from megatron_moo.buckets import parking, placement, replay, seam, step
from megatron_moo.buckets.blocks import Kind


def _kinds(change: dict[Kind, Kind]) -> None:
    stock = placement._kind_of
    placement._kind_of = lambda *args: change.get(kind := stock(*args), kind)


def count_replicas_everywhere() -> None:
    """Parameters replicated over TP enter the Gramian once per rank."""
    _kinds({Kind.COPY: Kind.OWN})


def forget_sequence_parallel_sums() -> None:
    """Norm gradients under sequence parallelism enter the Gramian as partial sums."""
    _kinds({Kind.PARTIAL_TP: Kind.OWN})


def forget_tied_embedding() -> None:
    """The summands of an embedding tied over pipeline stages enter the Gramian apart."""
    _kinds({Kind.PARTIAL_EMBD: Kind.OWN})


def forget_tokens() -> None:
    """Rows are sums over tokens instead of means."""
    stock = step.MooStep.count
    step.MooStep.count = lambda self, amount: stock(self, 1.0)  # type: ignore[method-assign]


def forget_to_reduce_gramians() -> None:
    """Every rank solves with the Gramian of its own shard."""
    stock = step.MooStep._reduced

    def local(self: Any, parts: list) -> list:
        return [parts[0], *stock(self, parts[1:])]

    step.MooStep._reduced = local  # type: ignore[method-assign]


def forget_expert_peers() -> None:
    """Expert-parallel peers are taken for lanes of their own, and given different languages."""
    from tests.distributed import ranks
    from tests.distributed.case import Case

    stock, assignment, batch = seam.peer_groups, Case.assignment, ranks.batch

    def without_experts(ps: Any) -> list:
        import torch.distributed as dist

        expert = dist.get_process_group_ranks(ps.get_expert_model_parallel_group())
        return [group for group in stock(ps) if group != expert]

    def of_lane(case: Any, step: int, slot: int, lane: int, _peer: int, micro_batch: int) -> dict:
        # The batches stay those of the reference; only who computes them is another.
        return batch(case, step, slot, lane % case.lanes, lane // case.lanes, micro_batch)

    seam.peer_groups = ranks.peer_groups = without_experts
    Case.assignment = lambda self, step: [slot * self.peers for slot in assignment(self, step)]  # type: ignore
    ranks.batch = of_lane


def finish_twice() -> None:
    """Megatron's finalize starts a second exchange of buckets that hold parked rows."""
    import contextlib

    seam.finish_disabled = lambda chunks: contextlib.nullcontext()  # type: ignore[assignment]


def forget_kept_slots() -> None:
    """Rows of earlier slots are zeroed with the gradient buffer that they alias."""
    stock = step.MooStep.arrived

    def alias(self: Any, plan: Any, received: Any) -> None:
        if self.now.pairs:
            stock(self, plan, received)
        else:
            self._kept[plan.name].append(received)

    step.MooStep.arrived = alias  # type: ignore[method-assign]


def forget_instances() -> None:
    """Rows are not summed over distributed-optimizer instances."""
    step.sum_over = lambda tensors, group: None  # type: ignore[assignment]


def put_buckets_together() -> None:
    """All buckets of a virtual pipeline chunk stay in one group, which Megatron's fp32 accumulation refuses."""
    seam._bucketing_kept = lambda stock: stock


def forget_to_mask_bad_rows() -> None:
    """A row that is not finite is combined with weight 0 (0 x NaN is NaN)."""
    stock = step.combine
    step.combine = lambda rows, weights, out, masked: stock(rows, weights, out, False)  # type: ignore[assignment]


def combine_forwards() -> None:
    """Updates are written from the first bucket on, over rows of the next one that wait there."""
    stock = parking.Parking.__init__

    def forwards(self: Any, plans: Any) -> None:
        stock(self, plans)
        self.backwards = self.backwards[::-1]

    parking.Parking.__init__ = forwards  # type: ignore[method-assign]


class _Everybody(set):
    def __contains__(self, name: object) -> bool:
        return True


def forget_who_is_alive() -> None:
    """Rows are received over a bucket that was not exchanged yet, where the backward pass runs in another order."""
    stock = parking._Tape.__init__

    def all_dead(self: Any, plans: Any) -> None:
        stock(self, plans)
        self.dead = _Everybody()

    parking._Tape.__init__ = all_dead  # type: ignore[method-assign]


def lose_the_handle() -> None:
    """Without Megatron's fp32 accumulation the exchange's handle is dropped: nobody waits for the rows."""
    from dataclasses import replace

    stock = seam.Seam._attach

    def blind(self: Any, chunks: list) -> None:
        for chunk in chunks:  # bucket groups keep the config that they were built with
            chunk.ddp_config = replace(chunk.ddp_config, reduce_scatter_with_fp32_accumulation=True)
        stock(self, chunks)

    seam.Seam._attach = blind  # type: ignore[method-assign]


def all_reduce_instead() -> None:
    """A step that saves weight gradients all-reduces every bucket, and no row is exchanged."""
    from functools import partial

    stock = seam.Seam.wrap_schedule

    def wrap(self: Any, schedule: Any) -> Any:
        def run(force_all_reduce: bool = False, **kw: Any) -> list:
            return stock(self, partial(schedule, force_all_reduce=force_all_reduce))(**kw)

        return run

    seam.Seam.wrap_schedule = wrap  # type: ignore[method-assign]


def forget_averages_over_tp() -> None:
    """A gradient that Megatron averages over TP at the end enters the Gramian as one rank's part."""
    stock = placement._kind_of

    def blind(param: Any, *args: Any) -> Kind:
        averaged = vars(param).pop("average_gradients_across_tp_domain", False)
        kind = stock(param, *args)
        param.average_gradients_across_tp_domain = averaged
        return kind

    placement._kind_of = blind


def gather_in_every_pass() -> None:
    """Every pass of a step gathers the parameters again, though they have not changed."""
    seam.keep_parameters = lambda chunks: None
    seam.gather_of_pass = lambda index, gather: gather


def forget_random_state() -> None:
    """A repeated pass draws other dropout masks."""
    replay._set_random_state = lambda state: None


def resume_as_megatron_does() -> None:
    """torch's Adam is loaded without the three repairs of ``make_resumable``."""
    seam.make_resumable = lambda optimizer: None
