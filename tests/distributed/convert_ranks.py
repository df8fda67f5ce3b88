"""What ranks at a layout compute from a converted checkpoint, loaded and saved by Megatron's own code."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

SEQ = 24


def flags_of(folder: Path, tp: int, pp: int, world: int, **more: Any) -> dict[str, Any]:
    """The flags written beside an imported checkpoint, with a layout."""
    import yaml

    from megatron_moo.training.platform import CPU_FLAGS
    from megatron_moo.training.recipe import REQUIRED

    return {
        **CPU_FLAGS,
        **REQUIRED,
        **yaml.safe_load((folder / "model.yaml").read_text()),
        "vocab-size": 100,
        "seq-length": SEQ,
        "micro-batch-size": 2,
        "global-batch-size": 2 * world // (tp * pp),
        "train-iters": 20,
        "lr": 1e-2,
        "clip-grad": 1.0,
        "eval-iters": 0,
        "eval-interval": 1000,
        "save-interval": 1000,
        "rerun-mode": "disabled",
        "ckpt-format": "torch_dist",
        "dist-ckpt-optim-fully-reshardable": True,
        "calculate-per-token-loss": True,
        "pretrained-checkpoint": str(folder),
        "tensor-model-parallel-size": tp,
        "pipeline-model-parallel-size": pp,
        **more,
    }


def start(flags: dict[str, Any]) -> Any:
    """Start Megatron with flags; returns its arguments."""
    from megatron.training import initialize
    from megatron.training.arguments import parse_and_validate_args

    from megatron_moo.training import platform
    from megatron_moo.training.arguments import add_moo_arguments
    from megatron_moo.training.recipe import to_argv

    platform.prepare()
    sys.argv = ["test", *to_argv(flags)]
    args = parse_and_validate_args(extra_args_provider=add_moo_arguments)
    with platform.initialising():
        initialize.initialize_megatron()
    return args


def logits_worker(
    rank: int, world: int, folder: Path, tp: int, pp: int, ids: list[int], cp: int = 1, **more: Any
) -> Any:
    """Logits ``[s, vocab]`` of the last stage at a layout, padding included; None elsewhere."""
    from megatron.core import parallel_state as ps
    from megatron.core.enums import ModelType
    from megatron.training.checkpointing import load_checkpoint
    from megatron.training.training import get_model

    from megatron_moo.models.gpt import build_model

    args = start(flags_of(folder, tp, pp, world, **{"context-parallel-size": cp}, **more))
    model = get_model(partial(build_model, args), ModelType.encoder_or_decoder, wrap_with_ddp=False)
    load_checkpoint(model, None, None)
    for chunk in model:
        chunk.eval()
    out = _part_of_sequence(model[0], ids, cp) if cp > 1 else forward(model, torch.tensor([ids]))
    if not ps.is_pipeline_last_stage():
        return None
    parts = [torch.empty_like(out) for _ in range(tp)]
    dist.all_gather(parts, out.contiguous(), group=ps.get_tensor_model_parallel_group())
    return torch.cat(parts, -1)[0].float()


def _part_of_sequence(model: Any, ids: list[int], cp: int) -> torch.Tensor:
    """Logits ``[1, s, vocab / tp]`` of the whole sequence, each context-parallel rank computing its two pieces."""
    from megatron.core import parallel_state as ps

    from megatron_moo.models.modules.attention import zigzag_positions

    places = zigzag_positions(len(ids), cp, torch.device("cpu"))
    mine = places[ps.get_context_parallel_rank()]
    with torch.no_grad():
        out = model(torch.tensor([ids])[:, mine], mine[None], None)
    parts = [torch.empty_like(out) for _ in range(cp)]
    dist.all_gather(parts, out.contiguous(), group=ps.get_context_parallel_group())
    whole = torch.empty(1, len(ids), out.shape[-1], dtype=out.dtype)
    for place, part in zip(places, parts, strict=True):
        whole[:, place] = part
    return whole


def forward(model: list[Any], ids: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
    """Output of the last stage through Megatron's own schedule, None elsewhere."""
    from megatron.core.pipeline_parallel import get_forward_backward_func

    def step(_data: Any, chunk: Any) -> tuple[torch.Tensor, Any]:
        positions = torch.arange(ids.shape[1])[None].expand_as(ids)
        return chunk(ids, positions, None, labels=labels), lambda out, **_: out

    with torch.no_grad():
        found = get_forward_backward_func()(
            forward_step_func=step, data_iterator=None, model=model, num_microbatches=1, seq_length=ids.shape[1],
            micro_batch_size=ids.shape[0], forward_only=True, collect_non_loss_data=True,
        )  # fmt: skip
    return found[0] if found else None


def train_worker(
    rank: int, world: int, folder: Path, save: Path, tp: int, pp: int, steps: int = 3, **more: Any
) -> Any:
    """Train from an imported checkpoint, save with Megatron, and give losses, norms and the loss of a batch."""
    from megatron.core import parallel_state as ps
    from megatron.core.distributed import finalize_model_grads
    from megatron.core.enums import ModelType
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.core.utils import get_model_config
    from megatron.training import get_timers, training
    from megatron.training.argument_utils import pretrain_cfg_container_from_args
    from megatron.training.checkpointing import save_checkpoint

    from megatron_moo.models.gpt import build_model
    from megatron_moo.training.forward import forward_step

    args = start(flags_of(folder, tp, pp, world, save=str(save), load=str(save), **more))
    model, optimizer, scheduler = training.setup_model_and_optimizer(
        ModelType.encoder_or_decoder, model_provider_func=partial(build_model, args), checkpointing_context={},
        cfg_container=pretrain_cfg_container_from_args(args),
        pg_collection=ProcessGroupCollection.use_mpu_process_groups(),
    )  # fmt: skip
    config = get_model_config(model[0])
    config.grad_scale_func, config.timers = optimizer.scale_loss, get_timers()
    config.finalize_model_grads_func = finalize_model_grads
    data = batches(ps.get_data_parallel_rank())
    step = partial(forward_step, record=lambda _batch: lambda *_: None)
    losses, norms = [], []
    for iteration in range(steps):
        args.curr_iteration = iteration
        reduced, *_, grad_norm, _zeros, _logit = training.train_step(
            lambda it, m: step(it, m), data, model, optimizer, scheduler, config,
            training.get_forward_backward_func(), iteration,
        )  # fmt: skip
        losses.append(float(reduced["lm loss"]))
        norms.append(float(grad_norm))
    save_checkpoint(steps, model, optimizer, scheduler, 0)
    for chunk in model:
        chunk.eval()
    ids = held_out()
    found = forward(model, ids[:, :-1], ids[:, 1:])
    return losses, norms, None if found is None else float(found.float().mean())


def held_out() -> torch.Tensor:
    """A batch that training did not see, ``[2, SEQ + 1]``."""
    return torch.randint(100, (2, SEQ + 1), generator=torch.Generator().manual_seed(77))


def batches(lane: int) -> Any:
    """Endless micro-batches of a data-parallel rank."""
    generator = torch.Generator().manual_seed(lane)
    while True:
        ids = torch.randint(100, (2, SEQ + 1), generator=generator)
        yield {
            "tokens": ids[:, :-1], "labels": ids[:, 1:], "loss_mask": torch.ones(2, SEQ), "language": 0,
            "position_ids": torch.arange(SEQ)[None].expand(2, SEQ),
        }  # fmt: skip
