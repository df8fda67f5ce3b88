"""Does a Megatron checkpoint hold what a Hugging Face checkpoint holds?"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from megatron_moo.convert.exporter import open_target, read_parts
from megatron_moo.convert.importer import open_source
from megatron_moo.convert.world import forward_flags, load_model, one_rank
from megatron_moo.errors import MooError
from megatron_moo.models.files import regular_file


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


@dataclass(frozen=True)
class Logits:
    """How the logits of both sides compare on a text.

    Attributes:
        gap: largest absolute difference.
        largest: largest absolute logit.
        perplexity: of the text in transformers and in Megatron; NaN for a text of one token.
    """

    gap: float
    largest: float
    perplexity: tuple[float, float]


def logit_difference(hf: Path, checkpoint: Path, tokens: list[int], ignore: Sequence[str] = ()) -> Logits:
    """Compare the logits of both sides in fp32.

    Args:
        hf, checkpoint: both sides.
        tokens: input.
        ignore: config keys that the user vouches for.

    Raises:
        MooError: when either side is damaged, or transformers is not installed.
    """
    reference = transformers_logits(hf, tokens)
    target = open_target(checkpoint, hf, ignore)
    target.checkpoint.close()
    found = megatron_logits(target.checkpoint.folder, target.model, tokens)
    return Logits(
        float((reference - found).abs().max()),
        float(reference.abs().max()),
        (perplexity(reference, tokens), perplexity(found, tokens)),
    )


def perplexity(logits: torch.Tensor, tokens: list[int]) -> float:
    """Perplexity per token of a text under its logits ``[s, vocab]``, its first token not counted."""
    wanted = torch.tensor(tokens[1:])
    return float(torch.nn.functional.cross_entropy(logits[:-1].double(), wanted).exp())


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
        MooError: when transformers is not installed, and for a folder that would send it elsewhere.
    """
    if os.path.lexists(hf / "adapter_config.json"):
        # transformers would load the base model that this file names instead of the folder.
        raise MooError("has an adapter_config.json", str(hf), "take it out, or merge the adapter")
    try:
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging
    except ImportError:
        raise MooError("needs the package transformers", "--logits", "pip install transformers") from None
    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(
        hf, dtype=torch.float32, trust_remote_code=False, use_safetensors=True, local_files_only=True,
        attn_implementation="eager",
    )  # fmt: skip
    with torch.no_grad():
        return model.eval()(torch.tensor([tokens])).logits[0].float()


def text_tokens(hf: Path, text: str, vocab: int) -> list[int]:
    """Token numbers of a text, at most 512, by the checkpoint's own tokenizer; agreed numbers when it has none."""
    if os.path.lexists(hf / "tokenizer.json"):
        from tokenizers import Tokenizer

        found = Tokenizer.from_file(str(regular_file(hf / "tokenizer.json"))).encode(text).ids
        return [token for token in found if token < vocab][:512] or [0]
    generator = torch.Generator().manual_seed(0)
    return torch.randint(vocab, (64,), generator=generator).tolist()
