"""What works together with Bucket-Level MOO, and what is refused by name at start-up.

The table in docs/support.md is generated from :data:`TABLE`; a test goes through every row.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from megatron_moo.buckets.placement import AVERAGED, WHY_AVERAGED
from megatron_moo.errors import MooError


@dataclass(frozen=True)
class Row:
    """A feature of Megatron.

    Attributes:
        feature: its name.
        flags: the flags that ask for it, as a user would write them.
        why: the reason, for a refusal or a warning.
        asked: whether parsed arguments ask for it.
        warn: only warn.
        given: the flag as these arguments gave it, where there are several; ``flags`` without it.
    """

    feature: str
    flags: str
    why: str
    asked: Callable[[Any], bool]
    warn: bool = False
    given: Callable[[Any], str] | None = None


def _has(name: str) -> Callable[[Any], bool]:
    return lambda args: bool(getattr(args, name, None))


def _full_iteration(args: Any) -> str:
    """The flag that asks for a CUDA graph of a whole iteration, or nothing.

    Megatron's validation makes the old spellings, as a scope or module, into the new one.
    """
    places = ("cuda_graph_impl", "--cuda-graph-impl"), ("cuda_graph_scope_deprecated", "--cuda-graph-scope")
    for name, flag in (*places, ("cuda_graph_modules", "--cuda-graph-modules")):
        value = getattr(args, name, None) or []
        if "full_iteration" in (value if isinstance(value, list) else [value]):
            return f"{flag} full_iteration"
    return ""


def _averaging_layers(args: Any) -> str:
    """The flag that asks for DeepSeek's sparse attention, whose indexer has averaged gradients, or nothing."""
    if getattr(args, "experimental_attention_variant", None) == "dsa":
        return "--experimental-attention-variant dsa"
    pattern = getattr(args, "hybrid_layer_pattern", None) or ""
    return f"--hybrid-layer-pattern {pattern}" if "D" in pattern else ""


TABLE: tuple[Row, ...] = (
    Row("fp16 loss scaling", "--fp16", "the scale enters Gramians squared; train in bf16", _has("fp16")),
    Row("Megatron-FSDP", "--use-megatron-fsdp", "it has no buckets to exchange", _has("use_megatron_fsdp")),
    Row("torch FSDP2", "--use-torch-fsdp2", "it has no buckets to exchange", _has("use_torch_fsdp2")),
    Row(
        "Muon and every other layer-wise optimizer",
        "--optimizer muon",
        "it gives ranks whole matrices, and the update is combined in shards of buckets",
        lambda args: (
            args.optimizer not in ("adam", "sgd")
            or bool(getattr(args, "use_layer_wise_distributed_optimizer", False))
        ),
        given=lambda args: f"--optimizer {args.optimizer}",
    ),
    Row(
        "SGD",
        "--optimizer sgd",
        "Megatron's distributed optimizer takes Adam only",
        lambda args: args.optimizer == "sgd",
    ),
    Row(
        "full-iteration CUDA graphs",
        "--cuda-graph-impl full_iteration",
        "the solve stands between backward pass and optimizer",
        lambda args: bool(_full_iteration(args)),
        given=lambda args: _full_iteration(args),
    ),
    Row("NCCL user buffers", "--use-nccl-ub", "rows arrive in buffers of our own", _has("nccl_ub")),
    Row(
        "multi-token prediction",
        "--mtp-num-layers 1",
        "its losses are not counted per language",
        _has("mtp_num_layers"),
    ),
    Row(
        "optimizer CPU offload",
        "--optimizer-cpu-offload",
        "the update is combined on the device",
        _has("optimizer_cpu_offload"),
    ),
    Row(
        "fp8 and fp4 parameters",
        "--fp8-param-gather",
        "their buffers are packed bytes",
        lambda args: bool(args.fp8_param_gather or getattr(args, "fp4_param_gather", False)),
        given=lambda args: "--fp8-param-gather" if args.fp8_param_gather else "--fp4-param-gather",
    ),
    Row(
        "gradients reduced in bf16",
        "--grad-reduce-in-bf16",
        "rows of a language would add up in bf16 (docs/kernels.md); --moo-wire bf16 halves the bytes",
        lambda args: bool(args.grad_reduce_in_bf16) or "bf" in str(getattr(args, "main_grads_dtype", "")),
        given=lambda args: "--grad-reduce-in-bf16" if args.grad_reduce_in_bf16 else "--main-grads-dtype bf16",
    ),
    Row(
        "averaging collectives",
        "--ddp-average-in-collective",
        "rows of different objectives must not be averaged",
        _has("ddp_average_in_collective"),
    ),
    Row(
        "local fp32 accumulation by name pattern",
        "--ddp-param-name-patterns-for-fp32-local-accumulation all",
        "it writes the gradient buffer while rows are parked there",
        _has("ddp_param_name_patterns_for_fp32_local_accumulation"),
    ),
    Row(
        f"averaging of gradients over tensor-parallel ranks ({AVERAGED})",
        "--experimental-attention-variant dsa",
        f"{WHY_AVERAGED}; a model whose parameters carry the attribute is refused where it is wrapped",
        lambda args: bool(_averaging_layers(args)),
        given=_averaging_layers,
    ),
    Row(
        "saved weight gradients",
        "--save-wgrads-interval 1",
        "an all-reduced gradient bypasses MOO",
        _has("save_wgrads_interval"),
    ),
    Row(
        "MXFP8 gather in the gradient buffer",
        "--reuse-grad-buf-for-mxfp8-param-ag",
        "rows are parked there",
        _has("reuse_grad_buf_for_mxfp8_param_ag"),
    ),
    Row(
        "generalised tensor parallelism",
        "--tensor-parallel-num-weight-shards 2",
        "its gradients are reduced on another axis",
        lambda args: (
            (getattr(args, "tensor_parallel_num_weight_shards", None) or 1)
            > max(1, args.tensor_model_parallel_size)
        ),
    ),
    Row(
        "observing with several optimizer instances",
        "--moo-observe --num-distributed-optimizer-instances 2",
        "rows of the instances are not summed when the update is Megatron's",
        lambda args: args.moo_observe and args.num_distributed_optimizer_instances > 1,
    ),
    Row(
        "observing several slots without --calculate-per-token-loss",
        "--moo-observe --moo-slots 2",
        "a loss would be divided by the micro-batches of its slot, not of the step, and the update would not be "
        "Megatron's",
        lambda args: (
            args.moo_observe
            and str(args.moo_slots).isdigit()
            and int(args.moo_slots) > 1
            and not args.calculate_per_token_loss
        ),
        given=lambda args: f"--moo-observe --moo-slots {args.moo_slots}",
    ),
    Row(
        "parameter gathers under the optimizer's step",
        "--overlap-param-gather-with-optimizer-step",
        "it gives the first model chunk an optimizer of its own, which MOO is not tested with; --overlap-param-gather "
        "alone works",
        _has("overlap_param_gather_with_optimizer_step"),
    ),
    Row(
        "an expert bias under repeated passes",
        "--moo-recompute --moe-router-enable-expert-bias",
        "it would count the tokens of repeated passes again",
        lambda args: bool(args.moo_recompute) and args.moe_router_enable_expert_bias,
    ),
    Row(
        "a global auxiliary loss under repeated passes",
        "--moo-recompute --moe-router-load-balancing-type global_aux_loss --moe-aux-loss-coeff 0.01",
        "it adds up over the passes of a step, so that a repeated pass has another gradient",
        lambda args: (
            bool(args.moo_recompute) and "global_aux_loss" in _balancing(args) and _coefficient(args) > 0
        ),
    ),
    Row(
        "quantile balancing under repeated passes",
        "--moo-recompute --moe-router-load-balancing-type quantile_balancing --moe-aux-loss-coeff 0",
        "every training forward adds to the bias of experts, so that repeated slots would weigh more",
        lambda args: bool(args.moo_recompute) and "quantile_balancing" in _balancing(args),
    ),
    Row(
        "auxiliary losses of experts",
        "--moe-router-load-balancing-type aux_loss --moe-aux-loss-coeff 0.01",
        "on language-homogeneous micro-batches they push every language over all experts (global_aux_loss adds up "
        "over the passes of a step, so that it also depends on their order); prefer --moe-router-enable-expert-bias",
        lambda args: (
            bool(args.num_experts)
            and any("aux_loss" in kind for kind in _balancing(args))
            and _coefficient(args) > 0
        ),
        warn=True,
    ),
    Row(
        "sinkhorn routing of experts",
        "--moe-router-load-balancing-type sinkhorn --moe-aux-loss-coeff 0",
        "it balances every micro-batch, and on language-homogeneous ones pushes every language over all experts as an "
        "auxiliary loss does; prefer --moe-router-enable-expert-bias",
        lambda args: bool(args.num_experts) and "sinkhorn" in _balancing(args),
        warn=True,
    ),
)


def _balancing(args: Any) -> list[str]:
    kind = args.moe_router_load_balancing_type
    return kind if isinstance(kind, list) else [kind]


def _coefficient(args: Any) -> float:
    value = args.moe_aux_loss_coeff
    return max(value) if isinstance(value, list) else float(value)


def check_supported(args: Any, warn: bool = True) -> None:
    """Refuse what MOO cannot do right, and warn of what it does poorly.

    Every door asks first of all: before Megatron's own validation where there is a choice, which reads other things
    into some of these flags, and before anything is built.

    Args:
        args: Megatron's parsed arguments with ours, validated or not.
        warn: whether to write the warnings.

    Raises:
        MooError: naming the feature and its flags.
    """
    for row in TABLE:
        if not row.asked(args):
            continue
        if not row.warn:
            flags = row.flags if row.given is None else row.given(args)
            raise MooError(f"{row.feature} does not work with MOO: {row.why}", flags, "remove it")
        if warn:
            sys.stderr.write(f"megatron-moo: warning: {row.feature} ({row.flags}): {row.why}\n")


SUPPORTED = """\
| Layout or feature | Tested by |
| --- | --- |
| data parallelism 1, 2, 4, 8; gradient accumulation; slots | `test_layouts.py` |
| tensor parallelism, sequence parallelism, RMSNorm, LayerNorm, q/k norms | `test_layouts.py` |
| pipeline parallelism, interleaved too; tied and untied embeddings | `test_layouts.py` |
| context parallelism | `test_layouts.py` |
| expert parallelism, expert tensor parallelism; Qwen3-MoE-like and Mixtral-like routing | `test_layouts.py` |
| several distributed-optimizer instances | `test_layouts.py` |
| `--overlap-grad-reduce` on and off, bucket sizes | `test_layouts.py` |
| `--overlap-param-gather` | `test_megatron.py` |
| `--calculate-per-token-loss` on and off, ragged token counts | `test_layouts.py`, `test_megatron.py` |
| bf16 parameters with fp32 main gradients | `test_layouts.py` |
| activation recomputation | `test_layouts.py` |
| `--moo-recompute`, `--moo-every`, `--moo-observe` | `test_layouts.py`, `test_modes.py` |
| gradient clipping and the logged gradient norm | `test_megatron.py` |
| a language with NaN or infinite gradients | `test_bad_gradients.py` |
| Megatron's rerun machine (`--rerun-mode`) | `test_megatron.py` |
| experts that a language did not reach | `test_experts.py` |
| frozen parameters and LoRA | `test_layouts.py` |
| resuming, state of methods | `test_state.py`, `end_to_end/test_train.py` |
"""


def markdown() -> str:
    """docs/support.md: what works, and the refusals and warnings (`python -m megatron_moo.training.support`)."""
    lines = [
        "# What works together with Bucket-Level MOO",
        "",
        "Written by `python -m megatron_moo.training.support`. Tests lie in `tests/distributed`; they run on CPU with",
        "gloo, and nothing here was run on a GPU.",
        "",
        SUPPORTED,
        "Refused at start-up with one line that names the flag, or warned of:",
        "",
        "| Feature | Flags | At start-up | Why |",
        "| --- | --- | --- | --- |",
    ]
    for row in TABLE:
        lines.append(f"| {row.feature} | `{row.flags}` | {'warned' if row.warn else 'refused'} | {row.why} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(markdown())
