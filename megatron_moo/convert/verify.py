"""Does a Megatron checkpoint hold what a Hugging Face checkpoint holds?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from megatron_moo.convert.exporter import open_target, read_parts
from megatron_moo.convert.importer import open_source
from megatron_moo.convert.world import forward_flags, load_model, one_rank
from megatron_moo.errors import MooError


@dataclass(frozen=True)
class Difference:
    """A tensor's Hugging Face name and the largest absolute difference."""

    name: str
    value: float


def tensor_differences(hf: Path, checkpoint: Path, ignore: Sequence[str] = ()) -> Iterator[Difference]:
    """Compare tensor by tensor, in fp32.

    Raises:
        MooError: when either side is damaged, or they are not the same model.
    """
    source = open_source(hf, ignore)
    target = open_target(checkpoint, hf, ignore)
    model = source.model
    for rule in model.rules:
        for place in model.places(rule):
            index = place[1] if rule.experts_in_one else None
            suffix = "" if index is None else f"[{index}]"
            for name, found in zip(model.names(rule, place), read_parts(target, rule, place), strict=True):
                wanted = source.weights.read(name, index)
                yield Difference(name + suffix, float((wanted.float() - found.float()).abs().max()))
    source.weights.close()
    target.checkpoint.close()


def logit_difference(
    hf: Path, checkpoint: Path, tokens: list[int], ignore: Sequence[str] = ()
) -> tuple[float, float]:
    """Largest absolute difference of the logits in fp32, and the largest logit.

    Args:
        hf, checkpoint: both sides.
        tokens: input.
        ignore: config keys that the user vouches for.
    """
    reference = transformers_logits(hf, tokens)
    target = open_target(checkpoint, hf, ignore)
    target.checkpoint.close()
    found = megatron_logits(target.checkpoint.folder, target.model, tokens)
    return float((reference - found).abs().max()), float(reference.abs().max())


def megatron_logits(folder: Path, model: object, tokens: list[int]) -> torch.Tensor:
    """Logits ``[s, vocab]`` of a checkpoint folder, loaded by Megatron, in fp32."""
    save = folder.parent if (folder.parent / "latest_checkpointed_iteration.txt").exists() else folder
    flags = forward_flags(model, save, len(tokens), torch.float32)  # type: ignore[arg-type]
    if folder.name.startswith("iter_"):
        flags["ckpt-step"] = int(folder.name.removeprefix("iter_"))
    with one_rank(flags) as args, torch.no_grad():
        network = load_model(args)
        ids = torch.tensor([tokens])
        logits = network(ids, torch.arange(len(tokens))[None], None)
    return logits[0, :, : model.dims["vocab"]].float()  # type: ignore[attr-defined]


def transformers_logits(hf: Path, tokens: list[int]) -> torch.Tensor:
    """Logits ``[s, vocab]`` of a Hugging Face checkpoint in fp32.

    Raises:
        MooError: when transformers is not installed.
    """
    try:
        from transformers import AutoModelForCausalLM
    except ImportError:
        raise MooError("needs the package transformers", "--logits", "pip install transformers") from None
    model = AutoModelForCausalLM.from_pretrained(
        hf, dtype=torch.float32, trust_remote_code=False, use_safetensors=True, local_files_only=True,
        attn_implementation="eager",
    )  # fmt: skip
    with torch.no_grad():
        return model.eval()(torch.tensor([tokens])).logits[0].float()


def text_tokens(hf: Path, text: str, vocab: int) -> list[int]:
    """Token numbers of a text by the checkpoint's own tokenizer, or agreed numbers when it has none."""
    if (hf / "tokenizer.json").is_file():
        from tokenizers import Tokenizer

        found = Tokenizer.from_file(str(hf / "tokenizer.json")).encode(text).ids
        return [token for token in found if token < vocab][:512] or [0]
    generator = torch.Generator().manual_seed(0)
    return torch.randint(vocab, (64,), generator=generator).tolist()
