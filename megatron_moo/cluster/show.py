"""Draws an estimate on one screen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from megatron_moo.training.sizes import FULL_RECOMPUTE

if TYPE_CHECKING:
    from megatron_moo.cluster.estimate import Choice, Estimate

_GIB = 2**30
_PARTS = (
    ("parameters", "parameters"),
    ("gradients", "gradients in fp32 (rows are parked there)"),
    ("optimizer", "optimizer, this rank's shard"),
    ("kept_rows", "rows kept between slots"),
    ("flying_rows", "rows in flight"),
    ("activations", "activations (Megatron's estimate)"),
    ("loss", "logits and loss in fp32"),
    ("scores", "attention scores (no fused attention)"),
)


def show(found: Estimate) -> None:
    """Print memory, wire, time and what to change."""
    from rich.console import Console
    from rich.table import Table

    screen, machine, args = Console(soft_wrap=True, highlight=False), found.machine, found.settled.args
    screen.print("\n".join(_head(found)), markup=False)
    table = Table("memory of the fullest rank" + (f" (stage {found.stage})" if found.stage else ""), "GiB")
    table.columns[1].justify = "right"
    for name, title in _PARTS:
        if (size := getattr(found.fullest, name)) > 0:
            table.add_row(title, _gib(size))
    table.add_row("for CUDA, NCCL and gaps (assumed)", _gib(machine.reserve), end_section=True)
    table.add_row(f"in all, of {_gib(machine.memory)}", _gib(found.fullest.total + machine.reserve))
    screen.print(table)
    lines = [_verdict(found), *_wire(found), *_time(found)]
    screen.print("\n".join(lines), markup=False)
    if args.recompute_granularity is None:
        screen.print("Activations are Megatron's estimate with nothing recomputed.", markup=False)
    for note in found.settled.notes:
        screen.print(f"Note: {note}", markup=False)
    screen.print("An estimate; docs/cluster.md says what it was held against.", markup=False)


def _head(found: Estimate) -> list[str]:
    args, settled = found.settled.args, found.settled
    nodes = -(-found.machine.gpus // found.machine.gpus_per_node)
    layout = [
        f"{name} {size}"
        for name, size in (
            ("TP", args.tensor_model_parallel_size), ("PP", args.pipeline_model_parallel_size),
            ("CP", args.context_parallel_size), ("EP", args.expert_model_parallel_size),
        ) if size > 1
    ] + [f"DP {args.data_parallel_size}"]  # fmt: skip
    tokens = args.global_batch_size * args.seq_length
    return [
        f"{found.parameters:,} parameters on {found.machine.gpus} GPUs, {nodes} node{'s' * (nodes > 1)}: "
        + ", ".join(layout),
        f"{settled.objectives} objectives on {settled.lanes} lanes x {settled.config.slots} slots, {found.passes} "
        f"passes a step, {tokens:,} tokens a step; {settled.impl} spec",
    ]


def _verdict(found: Estimate) -> str:
    slots = found.settled.config.slots
    if found.fits and slots == 1:
        return "Fits. One slot: no rows are kept."
    if found.fits:
        return f"Fits, {slots} slots with moo-rows {found.settled.config.row_dtype}{_held(found)}."
    if (choice := found.advice) is not None:
        return f"Does not fit. With {_way(choice)} it would: {choice.passes} passes a step, {_gib(choice.bytes)} GiB."
    return (
        "Does not fit, however rows are kept: cut the model (tensor-model-parallel-size), recompute activations "
        f"({FULL_RECOMPUTE}), shorten seq-length or train adapters (lora-rank)."
    )


def _held(found: Estimate) -> str:
    config = found.settled.config
    return f", moo-recompute {config.recompute}" if 0 < config.recompute < config.slots - 1 else ""


def _way(choice: Choice) -> str:
    return f"moo-rows: {choice.rows}" + (f" and moo-recompute: {choice.hold}" if choice.hold else "")


def _wire(found: Estimate) -> list[str]:
    traffic, per_node = found.traffic, min(found.machine.gpus, found.machine.gpus_per_node)
    lines = [
        f"Gradients on the wire, a rank and a step: {_gb(traffic.sent)} GB ({_gb(traffic.inside)} inside its node, "
        f"{_gb(traffic.between)} to others); parameters after it: {_gb(traffic.gather)} GB."
    ]
    if traffic.between and traffic.ring_between:
        lines.append(
            f"Out of every node: {_gb(traffic.between * per_node)} GB of gradients, "
            f"{traffic.between / traffic.ring_between:.1f} times a ring reduce-scatter of the same gradient once."
        )
    return lines


def _time(found: Estimate) -> list[str]:
    seconds, tokens = found.seconds, found.settled.args.global_batch_size * found.settled.args.seq_length
    extra = seconds.compute / seconds.plain - 1
    return [
        f"Time of a step at {found.machine.tflops:g} TFLOP/s a GPU: compute {seconds.compute:.2f} s, wire at most "
        f"{seconds.wire:.2f} s (hidden behind the backward pass as far as it goes), rows {seconds.rows:.2f} s: "
        f"{tokens / seconds.total:,.0f} tokens/s or more.",
        f"MOO's own part: {extra:+.0%} compute for repeated passes, rows {seconds.rows / seconds.plain:.1%} "
        "of compute.",
    ]


def _gib(size: float) -> str:
    return f"{size / _GIB:,.1f}" if size >= _GIB / 10 else f"{size / _GIB:.3g}"


def _gb(size: float) -> str:
    return f"{size / 1e9:.3g}"
