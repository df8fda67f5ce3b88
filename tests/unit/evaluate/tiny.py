"""A tiny Llama of random weights over bytes, and aligned text made up of two alphabets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megatron_moo.data.tokenizers import ByteTokenizer
from megatron_moo.evaluate.model import Opened


def tiny_model(folder: Path, seed: int = 0, vocab: int = 257, positions: int = 96) -> Path:
    """Save a Llama of 2 layers as a Hugging Face folder."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=positions, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    for param in model.parameters():  # large enough that choices differ
        param.data.mul_(4.0)
    model.save_pretrained(folder)
    return folder


def opened(folder: Path) -> Opened:
    """The same, opened with the byte tokenizer."""
    from megatron_moo.evaluate.model import load

    model: Any = load(folder)
    return Opened("tiny", folder, model, ByteTokenizer(), 96)


def write_text(folder: Path, pages: int = 12, blocks: int = 5, tags: tuple[str, ...] = ("aa", "bb")) -> Path:
    """``TAG.jsonl`` with the same pages and blocks; a language is an alphabet."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, tag in enumerate(tags):
        random = np.random.default_rng(number)
        first, count = ((0x61, 26), (0x3B1, 24))[number % 2]
        letters = [*(chr(first + i) for i in range(count)), " "]
        lines = []
        for page in range(pages):
            texts = [
                "".join(random.choice(letters, 45 + 3 * block)).strip() or "x" for block in range(blocks)
            ]
            record = {"id": f"page{page}", "blocks": list(range(1, blocks + 1)), "text": "\n".join(texts)}
            lines.append(json.dumps(record, ensure_ascii=False))
        (folder / f"{tag}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def byte_pieces(folder: Path, begin: bool = False) -> None:
    """Save a Hugging Face tokenizer beside a model: bytes as pieces, ``<end>`` (256), ``<begin>`` (257).

    Args:
        begin: whether the tokenizer puts ``<begin>`` before every text, as Llama's and Gemma's do.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = {piece: number for number, piece in enumerate([*alphabet, "<end>", "<begin>"])}
    tokenizer = Tokenizer(models.BPE(pieces, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if begin:
        tokenizer.post_processor = processors.TemplateProcessing(
            "<begin> $A", special_tokens=[("<begin>", 257)]
        )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", bos_token="<begin>")
    fast.save_pretrained(folder)
