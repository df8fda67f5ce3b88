"""Our flags beside Megatron's; read once, into :class:`MooConfig`."""

from __future__ import annotations

from typing import Any

from megatron_moo.buckets.blocks import BLOCKS
from megatron_moo.buckets.config import METRICS, RESCALES, ROW_DTYPES, MooConfig
from megatron_moo.buckets.hierarchy import EXCHANGES
from megatron_moo.buckets.wire import WIRES
from megatron_moo.errors import MooError
from megatron_moo.models.lora import TARGETS, lora_settings

# Flag, argparse options. Their list stands in a test: a new flag is a decision.
FLAGS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("--languages", {"metavar": "FILE", "help": "the manifest, languages.yaml"}),
    ("--corpus", {"metavar": "DIR", "help": "where the manifest was built to (default: beside the run folder)"}),
    ("--run-dir", {"metavar": "DIR", "help": "run folder (default: runs/NAME)"}),
    ("--moo-method", {"default": "cagrad", "help": "how conflicts are resolved (docs/methods.md)"}),
    ("--moo-option", {"action": "append", "default": [], "metavar": "NAME=VALUE", "help": "option of the method"}),
    ("--moo-block", {"default": "layer", "help": f"what shares a set of weights: {', '.join(BLOCKS)}"}),
    ("--moo-auto-every", {"type": int, "default": 50, "metavar": "N", "help": "steps between decisions of "
      "--moo-block auto"}),
    ("--moo-strength", {"default": "1", "metavar": "S", "help": "1 is the method's update, 0 the plain mean; A:B:N "
      "goes from A to B in N steps"}),
    ("--moo-slots", {"default": "auto", "help": "passes per step; auto: enough for every objective"}),
    ("--moo-presence", {"default": "present", "choices": ["present", "law"], "help": "every objective in every "
      "step, or drawn by the sampling law"}),
    ("--moo-rescale", {"default": "none", "help": f"norm of a block's update: {', '.join(RESCALES)}"}),
    ("--moo-exclude", {"metavar": "REGEX", "help": "parameters that stay at the plain mean"}),
    ("--moo-every", {"type": int, "default": 1, "metavar": "N", "help": "solve every N steps, reuse weights between"}),
    ("--moo-observe", {"action": "store_true", "help": "measure conflict, leave the update to Megatron"}),
    ("--moo-rows", {"default": "fp32", "help": f"dtype of rows kept between slots: {', '.join(ROW_DTYPES)}"}),
    ("--moo-wire", {"default": "fp32", "help": f"dtype in which rows travel: {', '.join(WIRES)}"}),
    ("--moo-wire-feedback", {"action": "store_true", "help": "add to a row what the wire lost of the one before"}),
    ("--moo-exchange", {"default": "auto", "help": f"how rows travel: {', '.join(EXCHANGES)}; auto: in two stages "
      "where that sends less between nodes"}),
    ("--moo-lane-group", {"type": int, "default": 1, "metavar": "G", "help": "deal objectives to groups of G lanes, so "
      "that G ranks compute the same one (for --moo-exchange)"}),
    ("--moo-ranks-per-node", {"type": int, "metavar": "N", "help": "where ranks are (default: by their host names)"}),
    ("--moo-metric", {"default": "euclidean", "help": f"inner product of Gramians: {', '.join(METRICS)}"}),
    ("--moo-recompute", {"type": int, "nargs": "?", "const": 1, "default": 0, "metavar": "H", "help": "keep the rows "
      "of at most H slots (1 when no number follows) and repeat passes, to save memory; 0 keeps all"}),
    ("--moo-mixed", {"action": "store_true", "help": "mix languages inside micro-batches, the update is Megatron's "
      "mean: the baseline (with --moo-method mean)"}),
    ("--moo-early-stop", {"metavar": "WHAT", "help": "stop when this held-out number, in bits per byte, no longer "
      "improves: macro, worst, or a language"}),
    ("--moo-patience", {"type": int, "default": 3, "metavar": "N", "help": "validations without improvement that "
      "end the run (default 3)"}),
    ("--moo-other-places", {"action": "store_true", "help": "let a run go on with another number of places a step "
      "(slots x lanes); which objective comes when begins anew"}),
    ("--moo-keep-last", {"type": int, "metavar": "N", "help": "delete all but the newest N complete checkpoints "
      "(default: keep all)"}),
    ("--moo-skip-verify", {"action": "store_true", "help": "load a checkpoint without checking its SHA-256 sums"}),
    ("--moo-trust-load", {"action": "store_true", "help": "load a checkpoint whose files belong to another user"}),
    ("--moo-timeout", {"type": float, "default": 600.0, "metavar": "S", "help": "seconds after which a rank that is "
      "not heard of ends the run (default 600; 0 never)"}),
    ("--lora-rank", {"type": int, "metavar": "N", "help": "train adapters of rank N only; the base is frozen"}),
    ("--lora-alpha", {"type": float, "metavar": "X", "help": "adapters are scaled by X / rank (default: the rank)"}),
    ("--lora-targets", {"nargs": "+", "metavar": "NAME", "help": f"adapted layers (default: {' '.join(TARGETS)})"}),
    ("--lora-dropout", {"type": float, "metavar": "P", "help": "dropout of the adapters' input (default: 0)"}),
    ("--freeze", {"metavar": "REGEX", "help": "parameters that do not train"}),
)  # fmt: skip

FLAG_NAMES = tuple(name.removeprefix("--") for name, _ in FLAGS)


def add_moo_arguments(parser: Any) -> Any:
    """Add :data:`FLAGS` to Megatron's parser."""
    group = parser.add_argument_group(title="megatron_moo")
    for name, options in FLAGS:
        group.add_argument(name, **options)
    return parser


def lane_count(args: Any, flag: str = "--nproc") -> int:
    """D, the number of lanes: data-parallel ranks, expert-parallel peers counted once.

    Args:
        args: with ``world_size`` and Megatron's parallel sizes.
        flag: what sets the number of ranks, for the message.

    Raises:
        MooError: when the sizes do not divide the ranks.
    """
    tp, pp, cp = (
        getattr(args, f"{kind}_parallel_size") for kind in ("tensor_model", "pipeline_model", "context")
    )
    model = tp * pp * cp
    if args.world_size % model:
        raise MooError(
            f"{args.world_size} ranks do not divide into tensor {tp} x pipeline {pp} x context {cp}",
            flag,
            f"use a multiple of {model} ranks",
        )
    # Expert groups are consecutive ranks of a stage, as tensor and context groups are: a lane is the larger of both.
    expert = args.expert_model_parallel_size * (args.expert_tensor_parallel_size or tp)
    size = max(tp * cp, expert) * args.num_distributed_optimizer_instances
    if size % (tp * cp) or (args.world_size // pp) % size:
        alone = max(tp * cp, expert)
        kind, what = "expert_model_parallel_size", "expert parallel size"
        if alone % (tp * cp) == 0 and (args.world_size // pp) % alone == 0:
            kind, what = "num_distributed_optimizer_instances", "optimizer instances"
        elif args.expert_model_parallel_size == 1:
            kind, what = "expert_tensor_parallel_size", "expert tensor parallel size"
        raise MooError(
            f"{what} {getattr(args, kind)} does not split {args.world_size} ranks",
            f"--{kind.replace('_', '-')}",
            f"use a multiple of {size * pp} ranks",
        )
    return args.world_size // pp // size


def lane_groups(args: Any) -> int:
    """What a slot's objectives are dealt to: D / ``--moo-lane-group``.

    Raises:
        MooError: when the groups do not divide the lanes.
    """
    lanes, group = lane_count(args), args.moo_lane_group
    if group < 1 or lanes % group:
        raise MooError(
            f"groups of {group} do not divide {lanes} lanes",
            "--moo-lane-group",
            "give a divisor of the lanes",
        )
    return lanes // group


def slot_count(value: str, objectives: int, lanes: int) -> int:
    """S: ``auto`` gives every objective a place in every step.

    Raises:
        MooError: for something that is not a positive number.
    """
    if value == "auto":
        return -(-objectives // lanes)
    if not str(value).isdigit() or int(value) < 1:
        raise MooError(f"{value!r} is not a number of passes", "--moo-slots", "give a whole number or auto")
    return int(value)


def parse_strength(value: str) -> tuple[float, float, int]:
    """``S`` or ``A:B:N``.

    Raises:
        MooError: for anything else.
    """
    parts = str(value).split(":")
    try:
        if len(parts) == 1:
            return float(parts[0]), float(parts[0]), 1
        first, last, steps = parts
        return float(first), float(last), int(steps)
    except ValueError:
        raise MooError(
            f"{value!r} is no number and no ramp", "--moo-strength", "give S or A:B:N, e.g. 0:1:500"
        ) from None


def moo_config(args: Any, objectives: int) -> MooConfig:
    """Read our flags.

    Raises:
        MooError: naming the flag, for an unknown method, option, block or value, and for fewer than two objectives.
    """
    from megatron_moo.moo import METHODS, parse_options
    from megatron_moo.training.mixed import mixed_config

    lora_settings(args)
    if objectives < 2:
        raise MooError(
            f"{objectives} objective, MOO needs at least 2",
            str(args.languages),
            "add a language, or give languages different objectives",
        )
    if args.moo_method.split(":")[-1] not in METHODS:
        raise MooError(
            f"unknown method {args.moo_method!r}", "--moo-method", f"choose from {', '.join(sorted(METHODS))}"
        )
    spec = METHODS[args.moo_method.split(":")[-1]]
    if "cross" in (*spec.needs, *spec.takes):
        raise MooError(
            f"{args.moo_method} needs two independent batches of every objective, which training does not draw",
            "--moo-method",
            "use it on Gramians of your own (megatron_moo.moo), or choose another",
        )
    try:
        options = parse_options(args.moo_method, args.moo_option)
    except ValueError as error:
        raise MooError(str(error), "--moo-option", "see docs/methods.md") from None
    _check_faults(args)
    if args.moo_mixed:
        return mixed_config(args)
    dealt = lane_groups(args)
    slots = slot_count(args.moo_slots, objectives, dealt)
    places = slots * dealt
    if args.moo_observe and slots > 1 and not args.calculate_per_token_loss:
        raise MooError(
            f"with several slots (here {slots}) needs --calculate-per-token-loss",
            "--moo-observe",
            "give it, or enough ranks for one slot",
        )
    if args.moo_every > 1 and (args.moo_presence == "law" or places < objectives):
        raise MooError(
            "weights of a solve serve later steps, but here an objective can be absent from a step "
            f"({objectives} objectives, {places} places, --moo-presence {args.moo_presence})",
            "--moo-every",
            "use --moo-presence present and --moo-slots auto, or remove it",
        )
    return MooConfig(
        method=args.moo_method,
        options=options,
        block=args.moo_block,
        slots=slots,
        rescale=args.moo_rescale,
        row_dtype=args.moo_rows,
        seed=args.seed,
        exclude=args.moo_exclude,
        observe=args.moo_observe,
        every=args.moo_every,
        recompute=args.moo_recompute,
        metric=args.moo_metric,
        wire=args.moo_wire,
        wire_feedback=args.moo_wire_feedback,
        exchange=args.moo_exchange,
        auto_every=args.moo_auto_every,
        strength=parse_strength(args.moo_strength),
        ranks_per_node=args.moo_ranks_per_node,
    )


def _check_faults(args: Any) -> None:
    if args.moo_keep_last is not None and args.moo_keep_last < 1:
        raise MooError(
            f"{args.moo_keep_last} checkpoints cannot be gone on from", "--moo-keep-last", "keep 1 or more"
        )
    if args.moo_timeout < 0:
        raise MooError(
            f"{args.moo_timeout:g} s is no time", "--moo-timeout", "give seconds, or 0 to wait for ever"
        )
