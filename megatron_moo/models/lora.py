"""What trains: all parameters, all but those a regular expression finds, or low-rank adapters only (LoRA).

A frozen parameter takes part in no bucket, so MOO sees the gradients of what trains and nothing else.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_moo.errors import MooError

TARGETS = ("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2")
_EXPERT_TARGETS = ("linear_fc1", "linear_fc2")


@dataclass(frozen=True)
class LoraSettings:
    """Adapters W + (alpha / rank) B A.

    Attributes:
        rank: r, the rows of A and columns of B.
        alpha: numerator of the scale.
        targets: names of the adapted layers, of :data:`TARGETS`.
        dropout: probability with which a value of the adapter's input is left out.
        seed: seed of A.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...] = TARGETS
    dropout: float = 0.0
    seed: int = 0

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def lora_settings(args: Any) -> LoraSettings | None:
    """Read the LoRA flags; None when there is no ``--lora-rank``.

    Raises:
        MooError: naming the flag.
    """
    rank, targets = getattr(args, "lora_rank", None), getattr(args, "lora_targets", None)
    alpha, dropout = getattr(args, "lora_alpha", None), getattr(args, "lora_dropout", None)
    freeze = getattr(args, "freeze", None)
    _check_regex(freeze)
    if rank is None:
        for flag, value in (
            ("--lora-alpha", alpha),
            ("--lora-targets", targets),
            ("--lora-dropout", dropout),
        ):
            if value is not None:
                raise MooError("does nothing without --lora-rank", flag, "add --lora-rank N or remove it")
        return None
    if rank < 1:
        raise MooError(f"{rank} is not a rank", "--lora-rank", "give a whole number of at least 1")
    if freeze is not None:
        raise MooError(
            "with --lora-rank the whole base is frozen already", "--freeze", "remove one of the two"
        )
    if alpha is not None and not alpha > 0:
        raise MooError(f"{alpha} is not above 0", "--lora-alpha", "leave it out to get the rank")
    if dropout is not None and not 0 <= dropout < 1:
        raise MooError(
            f"{dropout} is no probability", "--lora-dropout", "give a number of at least 0 and below 1"
        )
    names = TARGETS if targets is None else tuple(_words(targets))
    for name in names:
        if name not in TARGETS:
            raise MooError(f"unknown layer {name!r}", "--lora-targets", f"choose from {', '.join(TARGETS)}")
    if getattr(args, "num_experts", None) and (wrong := [n for n in names if n in _EXPERT_TARGETS]):
        raise MooError(
            f"experts get no adapters ({', '.join(wrong)})", "--lora-targets", "use linear_qkv linear_proj"
        )
    if getattr(args, "transformer_impl", "local") == "transformer_engine":
        raise MooError(
            "adapters are built on Megatron's own linear layers",
            "--lora-rank",
            "add --transformer-impl local",
        )
    return LoraSettings(rank, float(rank if alpha is None else alpha), names, dropout or 0.0, int(args.seed))


def _words(values: Any) -> list[str]:
    """Names given as one text, with spaces or commas between them, or as several."""
    text = values if isinstance(values, str) else " ".join(values)
    return text.replace(",", " ").split()


def _check_regex(pattern: str | None) -> None:
    try:
        re.compile(pattern or "")
    except re.error as error:
        raise MooError(f"{pattern!r} is no regular expression ({error})", "--freeze") from None


def select_trainable(model: Any, args: Any) -> Any:
    """Add adapters and freeze parameters as the flags say; before DDP wraps the model.

    ``build_model`` does this. A team's own model provider calls it on the model it returns.

    Args:
        model: this rank's part of a GPT of Megatron's local implementation.
        args: Megatron's parsed arguments with ours.

    Returns:
        ``model``, changed in place.

    Raises:
        MooError: naming the flag, where nothing would train or the checkpoint to load does not fit.
    """
    settings, pattern = lora_settings(args), getattr(args, "freeze", None)
    stored = adapter_rank(args)
    if settings is None and stored is not None:
        raise MooError(
            f"it holds adapters of rank {stored}, which would be left out",
            str(checkpoint_to_load(args)),
            f"add --lora-rank {stored}, or merge them with megatron-moo convert merge-lora",
        )
    if settings is not None:
        _check_stored(args, settings, stored)
        adapt(model, settings)
        for linear in adapted_layers(model).values():
            linear.lora_stored = stored is not None or checkpoint_to_load(args) is None
    elif pattern is not None:
        freeze(model, pattern)
    else:
        return model
    if getattr(args, "recompute_granularity", None) is not None:
        _keep_graph_through_recomputation(model)
    return model


def check_selected(model: Any, args: Any) -> None:
    """Refuse a model that a team's own provider built without :func:`select_trainable` though the flags ask for it.

    Raises:
        MooError: naming the flag.
    """
    for name, flag in (("lora_rank", "--lora-rank"), ("freeze", "--freeze")):
        if getattr(args, name, None) is not None and all(param.requires_grad for param in model.parameters()):
            raise MooError(
                "the model provider did not apply it",
                flag,
                "let it return megatron_moo.models.lora.select_trainable(model, args)",
            )


def adapt(model: Any, settings: LoraSettings) -> None:
    """Freeze ``model`` and put an adapter beside every layer that ``settings.targets`` names, in place.

    Raises:
        MooError: when a target names no layer of this part of the model.
    """
    from megatron_moo.models.modules.adapted import FACTORS, adapt_linear

    model.requires_grad_(False)
    found = set()
    for prefix, layer in _layers(model):
        for name, module in layer.named_modules():
            target = name.rpartition(".")[2]
            gated = target == "linear_fc1" and bool(model.config.gated_linear_unit)
            if target in settings.targets and adapt_linear(module, settings, f"{prefix}.{name}", gated):
                for factor in FACTORS:
                    getattr(module, factor).requires_grad_(True)
                found.add(target)
    if missing := sorted(set(settings.targets) - found):
        raise MooError(f"the model has no {missing[0]} to adapt", "--lora-targets", "leave it out")


def adapted_layers(model: Any) -> dict[str, Any]:
    """The linear layers with an adapter, by their name in the whole model."""
    return {
        f"{prefix}.{name}": module
        for prefix, layer in _layers(model)
        for name, module in layer.named_modules()
        if hasattr(module, "lora_A")
    }


def merge(model: Any) -> None:
    """Add every adapter to its weight, W + (alpha / r) B A, and set its B to zero: the same function, in place."""
    import torch

    with torch.no_grad():
        for linear in adapted_layers(model).values():
            linear.weight += (linear.lora_scale * (linear.lora_B.float() @ linear.lora_A.float())).to(
                linear.weight
            )
            linear.lora_B.zero_()


def freeze(model: Any, pattern: str) -> None:
    """Freeze the parameters in whose global name ``pattern`` is found.

    Raises:
        MooError: when it is found nowhere in a model on one pipeline stage, or everywhere on this stage.
    """
    from megatron_moo.buckets.placement import global_names

    class Chunk:  # global_names reads a wrapped chunk
        module = model

    names = global_names(Chunk)
    hit = [param for param, name in names.items() if re.search(pattern, name)]
    whole = model.pre_process and model.post_process
    if len(hit) == len(names):
        where = "" if whole else " of this pipeline stage"
        raise MooError(f"{pattern!r} freezes every parameter{where}", "--freeze", "leave some to train")
    if whole and not hit:
        near = ", ".join(list(names.values())[:2])
        raise MooError(f"{pattern!r} is found in no parameter", "--freeze", f"names are like {near}")
    for param in hit:
        param.requires_grad_(False)


def _layers(model: Any) -> list[tuple[str, Any]]:
    """Decoder layers with their name in the whole model (layers counted over all pipeline stages)."""
    return [(f"decoder.layers.{layer.layer_number - 1}", layer) for layer in model.decoder.layers]


def _keep_graph_through_recomputation(model: Any) -> None:
    """Recomputed layers get gradients only if their input has one: give the frozen embedding's output one."""
    if not model.pre_process:
        return

    def with_gradient(_module: Any, _args: Any, output: Any) -> Any:
        import torch

        return output if output.requires_grad or not torch.is_grad_enabled() else output.requires_grad_(True)

    model.embedding.register_forward_hook(with_gradient)


# The checkpoint that Megatron will load ------------------------------------------------------------------------------


def checkpoint_to_load(args: Any) -> Path | None:
    """Folder of the checkpoint that Megatron will load: of ``--load`` or else of ``--pretrained-checkpoint``."""
    for name in ("load", "pretrained_checkpoint"):
        folder = getattr(args, name, None)
        if folder and (Path(folder) / "latest_checkpointed_iteration.txt").exists():
            return checkpoint_folder(
                Path(folder), getattr(args, "ckpt_step", None) if name == "load" else None
            )
    return None


def checkpoint_folder(path: Path, step: int | None = None) -> Path:
    """The folder with the tensors: ``path`` itself, or the one that its tracker file (or ``step``) names.

    Raises:
        MooError: when there is none.
    """
    if (path / "metadata.json").exists():
        return path
    tracker = path / "latest_checkpointed_iteration.txt"
    if not tracker.exists():
        raise MooError(
            "no checkpoint here", str(path), "name a folder with latest_checkpointed_iteration.txt"
        )
    word = tracker.read_text(encoding="utf-8").strip()
    if step is not None:
        word = str(step)
    if word != "release" and not word.isdigit():
        raise MooError(f"{word!r} is no iteration", str(tracker))
    return path / (word if word == "release" else f"iter_{int(word):07d}")


def adapter_rank(args: Any) -> int | None:
    """Rank of the adapters in the checkpoint that Megatron will load, or None when it holds none."""
    folder = checkpoint_to_load(args)
    if folder is None or not (folder / ".metadata").exists():
        return None
    from torch.distributed.checkpoint import FileSystemReader

    tensors = FileSystemReader(folder).read_metadata().state_dict_metadata
    shapes = [
        value.size for key, value in tensors.items() if key.endswith(".lora_A") and hasattr(value, "size")
    ]
    return int(shapes[0][-2]) if shapes else None


def _check_stored(args: Any, settings: LoraSettings, stored: int | None) -> None:
    """Hold the checkpoint that Megatron will load against the flags."""
    folder = checkpoint_to_load(args)
    if folder is None:
        return
    if stored is not None and stored != settings.rank:
        raise MooError(f"the adapters in {folder} have rank {stored}, not {settings.rank}", "--lora-rank")
    own = getattr(args, "load", None) is not None and folder.is_relative_to(args.load)
    if stored is None and own and not args.finetune:
        raise MooError(
            "it holds no adapters to go on with",
            str(folder),
            "name it with --pretrained-checkpoint to start adapters on it",
        )
