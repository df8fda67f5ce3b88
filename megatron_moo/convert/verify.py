"""Does a Megatron checkpoint hold what a Hugging Face checkpoint holds?"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from megatron_moo.convert.dist_read import TRACKER
from megatron_moo.convert.exporter import open_target, read_parts
from megatron_moo.convert.importer import copy_side_files, open_source
from megatron_moo.convert.pickled import PickledWeights
from megatron_moo.convert.safe import SINGLE
from megatron_moo.convert.world import forward_flags, load_model, one_rank
from megatron_moo.errors import MooError
from megatron_moo.models.files import regular_file

_TEXT = "Every language is a vessel. Jede Sprache ist ein Gefäß. 每一种语言都是一个容器。"


@dataclass(frozen=True)
class Difference:
    """A tensor's Hugging Face name and the largest absolute difference."""

    name: str
    value: float


def tensor_differences(
    hf: Path, checkpoint: Path, ignore: Sequence[str] = (), allow_pickle: bool = False
) -> Iterator[Difference]:
    """Compare tensor by tensor.

    Raises:
        MooError: when either side is damaged, or they are not the same model.
    """
    source = open_source(hf, ignore, allow_pickle)
    target = open_target(checkpoint, hf, ignore)
    model = source.model
    for rule in model.rules:
        for place in model.places(rule):
            index = place[1] if rule.experts_in_one else None
            suffix = "" if index is None else f"[{index}]"
            for name, found in zip(model.names(rule, place), read_parts(target, rule, place), strict=True):
                wanted = source.weights.read(name, index)
                yield Difference(name + suffix, largest_gap(wanted, found))
    source.weights.close()
    target.checkpoint.close()


def largest_gap(wanted: Tensor, found: Tensor) -> float:
    """Largest absolute difference, in fp32 or wider. Equal bits are equal, those of NaN too; another NaN gives NaN."""
    kind = torch.promote_types(torch.promote_types(wanted.dtype, found.dtype), torch.float32)
    a, b = wanted.to(kind), found.to(kind)
    bits = torch.int64 if kind == torch.float64 else torch.int32
    gaps = (a - b).abs().masked_fill(a.contiguous().view(bits) == b.contiguous().view(bits), 0.0)
    return float(gaps.max())


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


def logit_difference(
    hf: Path, checkpoint: Path, tokens: list[int], ignore: Sequence[str] = (), allow_pickle: bool = False
) -> Logits:
    """Compare the logits of both sides in fp32.

    Args:
        hf, checkpoint: both sides.
        tokens: input.
        ignore: config keys that the user vouches for.
        allow_pickle: read ``pytorch_model*.bin`` with ``torch.load(weights_only=True)``.

    Raises:
        MooError: when either side is damaged, or transformers is not installed.
    """
    if allow_pickle and PickledWeights.found_in(hf):
        with tempfile.TemporaryDirectory() as plain:
            _unpickled(hf, Path(plain))
            reference = transformers_logits(Path(plain), tokens)
    else:
        reference = transformers_logits(hf, tokens)
    target = open_target(checkpoint, hf, ignore)
    target.checkpoint.close()
    found = megatron_logits(target.checkpoint.folder, target.model, tokens)
    return Logits(
        float((reference - found).abs().max()),
        float(reference.abs().max()),
        (perplexity(reference, tokens), perplexity(found, tokens)),
    )


def _unpickled(hf: Path, target: Path) -> None:
    """The same checkpoint as safetensors: transformers gets no pickle to read."""
    from safetensors.torch import save_file

    weights = PickledWeights(hf)
    # A copy of each: tied tensors are one in a pickle.
    tensors = {
        name: weights.read(name).clone(memory_format=torch.contiguous_format) for name in weights.entries
    }
    weights.close()
    save_file(tensors, target / SINGLE, metadata={"format": "pt"})
    copy_side_files(hf, target)


def perplexity(logits: torch.Tensor, tokens: list[int]) -> float:
    """Perplexity per token of a text under its logits ``[s, vocab]``, its first token not counted."""
    wanted = torch.tensor(tokens[1:])
    return float(torch.nn.functional.cross_entropy(logits[:-1].double(), wanted).exp())


def megatron_logits(folder: Path, model: object, tokens: list[int]) -> torch.Tensor:
    """Logits ``[s, vocab]`` of a checkpoint folder, loaded by Megatron, in fp32."""
    with tempfile.TemporaryDirectory() as save:
        # Megatron loads what a tracker names: this one names the folder, whatever one beside the folder names.
        (Path(save) / "release").symlink_to(folder.resolve())
        (Path(save) / TRACKER).write_text("release", encoding="utf-8")
        flags = forward_flags(model, Path(save), len(tokens), torch.float32)  # type: ignore[arg-type]
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


def text_tokens(hf: Path, text: str | None, vocab: int) -> list[int]:
    """Token numbers of a text, at most 512, by the checkpoint's own tokenizer.

    Without a text a short one of ours is taken, or agreed numbers when there is no ``tokenizer.json``.

    Raises:
        MooError: for a text and no ``tokenizer.json``.
    """
    if os.path.lexists(hf / "tokenizer.json"):
        from tokenizers import Tokenizer

        found = (
            Tokenizer.from_file(str(regular_file(hf / "tokenizer.json")))
            .encode(_TEXT if text is None else text)
            .ids
        )
        return [token for token in found if token < vocab][:512] or [0]
    if text is not None:
        raise MooError(
            "has no tokenizer.json, which --text and --text-file need",
            str(hf),
            "leave the text out: agreed token numbers are compared then",
        )
    generator = torch.Generator().manual_seed(0)
    return torch.randint(vocab, (64,), generator=generator).tolist()
