"""A tiny Llama checkpoint written without transformers, to be spoilt in a hundred ways."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}


def tensors() -> dict[str, torch.Tensor]:
    """Random weights of :data:`CONFIG` under Hugging Face's names."""
    generator = torch.Generator().manual_seed(3)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    found = {
        "model.embed_tokens.weight": random(128, 16),
        "lm_head.weight": random(128, 16),
        "model.norm.weight": random(16),
    }
    for layer in range(2):
        at = f"model.layers.{layer}."
        for name, rows, columns in (
            ("self_attn.q_proj", 16, 16), ("self_attn.k_proj", 8, 16), ("self_attn.v_proj", 8, 16),
            ("self_attn.o_proj", 16, 16), ("mlp.gate_proj", 24, 16), ("mlp.up_proj", 24, 16), ("mlp.down_proj", 16, 24),
        ):  # fmt: skip
            found[f"{at}{name}.weight"] = random(rows, columns)
        for name in ("input_layernorm", "post_attention_layernorm"):
            found[f"{at}{name}.weight"] = random(16)
    return found


def write(folder: Path, shards: int = 1, **config: Any) -> Path:
    """Write the checkpoint, in one file or in several with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
    items = list(tensors().items())
    if shards == 1:
        save_file(dict(items), folder / "model.safetensors")
        return folder
    weight_map = {}
    for i in range(shards):
        name = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = dict(items[i::shards])
        save_file(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )
    return folder
