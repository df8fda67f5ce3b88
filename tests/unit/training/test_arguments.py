"""Our flags: their list is a decision, and each wrong value is named."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import Any

import pytest

from megatron_moo.errors import MooError
from megatron_moo.training.arguments import FLAG_NAMES, add_moo_arguments, lane_count, moo_config, slot_count

EXPECTED = (
    "languages", "corpus", "run-dir", "moo-method", "moo-option", "moo-block", "moo-auto-every", "moo-strength",
    "moo-slots", "moo-presence",
    "moo-rescale", "moo-exclude", "moo-every", "moo-observe", "moo-rows",
    "moo-wire", "moo-wire-feedback", "moo-exchange", "moo-lane-group", "moo-ranks-per-node", "moo-metric",
    "moo-recompute",
    "moo-mixed", "moo-early-stop", "moo-patience",
    "moo-other-places", "moo-keep-last", "moo-skip-verify", "moo-trust-load", "moo-timeout",
    "lora-rank", "lora-alpha", "lora-targets", "lora-dropout", "freeze",
)  # fmt: skip


def test_the_list_of_flags() -> None:
    assert FLAG_NAMES == EXPECTED


def parsed(*flags: str, world: int = 2, **sizes: Any) -> Any:
    args = add_moo_arguments(ArgumentParser()).parse_args(list(flags))
    defaults = {
        "world_size": world, "seed": 1, "tensor_model_parallel_size": 1, "pipeline_model_parallel_size": 1,
        "context_parallel_size": 1, "expert_model_parallel_size": 1, "expert_tensor_parallel_size": None,
        "num_distributed_optimizer_instances": 1, "calculate_per_token_loss": True,
    }  # fmt: skip
    return Namespace(**vars(args), **{**defaults, **sizes})


@pytest.mark.parametrize(
    ("world", "sizes", "lanes"),
    [
        (1, {}, 1),
        (8, {}, 8),
        (8, {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2}, 2),
        (8, {"context_parallel_size": 2}, 4),
        (4, {"expert_model_parallel_size": 2}, 2),
        (8, {"context_parallel_size": 2, "expert_model_parallel_size": 2}, 4),
        (8, {"tensor_model_parallel_size": 2, "expert_model_parallel_size": 2}, 2),
        (
            8,
            {
                "tensor_model_parallel_size": 2,
                "expert_model_parallel_size": 2,
                "expert_tensor_parallel_size": 1,
            },
            4,
        ),
        (8, {"num_distributed_optimizer_instances": 2}, 4),
    ],
)
def test_lane_count(world: int, sizes: dict[str, int], lanes: int) -> None:
    assert lane_count(parsed(world=world, **sizes)) == lanes


def test_cached_weights_need_every_objective_in_every_step() -> None:
    for flags in (("--moo-every", "2", "--moo-slots", "1"), ("--moo-every", "2", "--moo-presence", "law")):
        with pytest.raises(MooError, match="absent from a step"):
            moo_config(parsed(*flags), 4)
    assert moo_config(parsed("--moo-every", "2"), 4).every == 2


def test_not_enough_ranks() -> None:
    with pytest.raises(MooError, match=r"--nproc: 2 ranks do not divide .* use a multiple of 4 ranks"):
        lane_count(parsed(world=2, tensor_model_parallel_size=2, pipeline_model_parallel_size=2))
    with pytest.raises(MooError, match=r"--expert-model-parallel-size: .* use a multiple of 4 ranks"):
        lane_count(parsed(world=2, expert_model_parallel_size=4))


def test_slots() -> None:
    assert slot_count("auto", 14, 2) == 7
    assert slot_count("auto", 3, 2) == 2
    assert moo_config(parsed("--moo-lane-group", "4", world=8), 3).slots == 2, (
        "3 objectives on 2 groups of 4 lanes"
    )
    assert slot_count("5", 3, 2) == 5
    for wrong in ("0", "-1", "two", "1.5"):
        with pytest.raises(MooError, match="--moo-slots"):
            slot_count(wrong, 3, 2)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--moo-method", "magic"), "--moo-method: unknown method 'magic'; choose from .*cagrad"),
        (("--moo-method", "sdmgrad"), "--moo-method: sdmgrad needs two independent batches"),
        (("--moo-method", "ema:modo"), "--moo-method: ema:modo needs two independent batches"),
        (("--moo-block", "tensor"), "--moo-block: unknown value 'tensor'; choose from bucket, layer"),
        (("--moo-rescale", "max"), "--moo-rescale"),
        (("--moo-rows", "fp8"), "--moo-rows"),
        (("--moo-metric", "sgd"), "--moo-metric"),
        (("--moo-wire", "int8"), "--moo-wire"),
        (("--moo-exchange", "ring"), "--moo-exchange"),
        (("--moo-auto-every", "1"), "--moo-auto-every"),
        (("--moo-strength", "2"), "--moo-strength"),
        (("--moo-strength", "0:1"), "--moo-strength"),
        (("--moo-strength", "0:1:0"), "--moo-strength"),
        (("--moo-exchange", "hierarchical", "--moo-observe"), "--moo-exchange"),
        (("--moo-ranks-per-node", "0"), "--moo-ranks-per-node"),
        (("--moo-lane-group", "3"), "--moo-lane-group"),
        (("--moo-wire", "bf16", "--moo-observe"), "--moo-wire"),
        (("--moo-wire-feedback",), "--moo-wire-feedback"),
        (("--moo-wire", "fp8", "--moo-wire-feedback", "--moo-recompute"), "--moo-wire-feedback"),
        (("--moo-recompute", "-1"), "--moo-recompute"),
        (("--moo-recompute", "--moo-observe"), "--moo-recompute"),
        (("--moo-every", "0"), "--moo-every"),
        (("--moo-every", "5", "--moo-observe"), "--moo-every: does nothing with --moo-observe"),
        (("--moo-mixed",), "--moo-mixed: cagrad needs one language per micro-batch; use --moo-method mean"),
        (
            ("--moo-mixed", "--moo-method", "mean", "--moo-rescale", "mean"),
            "--moo-mixed: --moo-rescale needs one language per micro-batch; remove --moo-rescale",
        ),
        (
            ("--moo-mixed", "--moo-method", "mean", "--moo-every", "2"),
            "--moo-mixed: --moo-every needs one language",
        ),
        (("--moo-exclude", "("), "--moo-exclude: '\\(' is no regular expression"),
        (("--moo-option", "c"), "--moo-option"),
        (("--lora-rank", "0"), "--lora-rank: 0 is not a rank"),
        (
            ("--lora-rank", "4", "--lora-targets", "linear_qkv", "q_proj"),
            "--lora-targets: unknown layer 'q_proj'",
        ),
        (("--lora-rank", "4", "--lora-alpha", "0"), "--lora-alpha"),
        (("--lora-rank", "4", "--lora-dropout", "1"), "--lora-dropout"),
        (("--lora-rank", "4", "--freeze", "norm"), "--freeze: with --lora-rank the whole base is frozen"),
        (("--lora-alpha", "8"), "--lora-alpha: does nothing without --lora-rank"),
        (("--freeze", "("), "--freeze: '\\(' is no regular expression"),
        (("--moo-keep-last", "0"), "--moo-keep-last: 0 checkpoints cannot be gone on from"),
        (("--moo-timeout", "-1"), "--moo-timeout: -1 s is no time"),
        (("--moo-option", "nonsense=1"), "--moo-option: .*nonsense"),
    ],
)
def test_wrong_values_are_named(flags: tuple[str, ...], message: str) -> None:
    with pytest.raises(MooError, match=message):
        moo_config(parsed(*flags), 3)


def test_measuring_several_slots_needs_the_loss_per_token() -> None:
    """Also where nobody gave a number of slots; the support table knows only what was given."""
    observed = ("--moo-observe",)
    with pytest.raises(
        MooError, match=r"--moo-observe: with several slots \(here 2\) needs --calculate-per-to"
    ):
        moo_config(parsed(*observed, calculate_per_token_loss=False), 3)
    assert moo_config(parsed(*observed), 3).slots == 2
    assert moo_config(parsed(*observed, world=3, calculate_per_token_loss=False), 3).slots == 1


def test_one_objective_is_refused() -> None:
    with pytest.raises(MooError, match="1 objective, MOO needs at least 2"):
        moo_config(parsed("--languages", "l.yaml"), 1)


def test_config() -> None:
    config = moo_config(parsed("--moo-method", "cagrad", "--moo-option", "c=0.25", "--moo-block", "param"), 5)
    assert (config.method, config.options, config.block, config.slots) == ("cagrad", {"c": 0.25}, "param", 3)
    mixed = moo_config(parsed("--moo-mixed", "--moo-method", "mean", "--moo-slots", "8"), 5)
    assert (mixed.method, mixed.slots, mixed.observe) == ("mean", 1, True), (
        "one pass, and Megatron's own mean"
    )
