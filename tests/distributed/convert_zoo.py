"""A tiny random Hugging Face checkpoint of every family, as data."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

SIZES: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.15,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}


@dataclass(frozen=True)
class Tiny:
    """One tiny checkpoint: transformers' config and model class, and config values over :data:`SIZES`."""

    name: str
    family: str
    config_class: str
    model_class: str
    values: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"


def _llama(name: str, **values: Any) -> Tiny:
    return Tiny(name, "llama", "LlamaConfig", "LlamaForCausalLM", values)


ZOO: tuple[Tiny, ...] = (
    _llama("llama"),
    _llama("llama tied, padded", tie_word_embeddings=True, vocab_size=100),
    _llama("llama 3.1", rope_parameters={**LLAMA3, "original_max_position_embeddings": 8192}),
    _llama(
        "llama 3, other original length", rope_parameters={**LLAMA3, "original_max_position_embeddings": 16}
    ),
    Tiny("qwen2 tied", "qwen2", "Qwen2Config", "Qwen2ForCausalLM", {"tie_word_embeddings": True}),
    Tiny("qwen3", "qwen3", "Qwen3Config", "Qwen3ForCausalLM", {"head_dim": 16}),
    Tiny(
        "mistral, window",
        "mistral",
        "MistralConfig",
        "MistralForCausalLM",
        {"sliding_window": 5, "head_dim": 16},
    ),
    Tiny("mistral, no window", "mistral", "MistralConfig", "MistralForCausalLM", {"sliding_window": None}),
    Tiny("smollm3", "smollm3", "SmolLM3Config", "SmolLM3ForCausalLM"),
    Tiny(
        "granite, padded", "granite", "GraniteConfig", "GraniteForCausalLM",
        {"vocab_size": 101, "embedding_multiplier": 3.0, "residual_multiplier": 0.22, "attention_multiplier": 0.11,
         "logits_scaling": 2.5},
    ),
    Tiny(
        "gemma2", "gemma2", "Gemma2Config", "Gemma2ForCausalLM",
        {"head_dim": 16, "sliding_window": 5, "query_pre_attn_scalar": 24, "attn_logit_softcapping": 2.0,
         "final_logit_softcapping": 3.0},
    ),
    Tiny(
        "gemma3", "gemma3", "Gemma3TextConfig", "Gemma3ForCausalLM",
        {"head_dim": 16, "sliding_window": 5, "query_pre_attn_scalar": 24,
         "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]},
    ),
    Tiny("olmo2", "olmo2", "Olmo2Config", "Olmo2ForCausalLM"),
    Tiny(
        "olmo3, yarn", "olmo3", "Olmo3Config", "Olmo3ForCausalLM",
        {"sliding_window": 5, "rope_parameters": {
            "full_attention": {"rope_type": "yarn", "rope_theta": 5e5, "factor": 8.0, "beta_fast": 32.0,
                               "beta_slow": 1.0, "original_max_position_embeddings": 16, "attention_factor": 1.2},
            "sliding_attention": {"rope_type": "default", "rope_theta": 5e5}}},
    ),
    Tiny("apertus", "apertus", "ApertusConfig", "ApertusForCausalLM"),
    Tiny("cohere", "cohere", "CohereConfig", "CohereForCausalLM", {"logit_scale": 0.25}),
    Tiny("cohere2", "cohere2", "Cohere2Config", "Cohere2ForCausalLM", {"logit_scale": 0.25, "sliding_window": 5}),
    Tiny(
        "qwen3_moe", "qwen3_moe", "Qwen3MoeConfig", "Qwen3MoeForCausalLM",
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 16,
         "norm_topk_prob": True},
    ),
    Tiny(
        "qwen3_moe, not normalised", "qwen3_moe", "Qwen3MoeConfig", "Qwen3MoeForCausalLM",
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 16,
         "norm_topk_prob": False},
    ),
    Tiny("mixtral", "mixtral", "MixtralConfig", "MixtralForCausalLM", {"num_local_experts": 4}),
    Tiny(
        "gpt_oss", "gpt_oss", "GptOssConfig", "GptOssForCausalLM",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16, "sliding_window": 5, "swiglu_limit": 1.0,
         "rope_parameters": {"rope_type": "yarn", "rope_theta": 150000.0, "factor": 32.0, "beta_fast": 32.0,
                             "beta_slow": 1.0, "truncate": False, "original_max_position_embeddings": 8}},
    ),
)  # fmt: skip


def by_name(name: str) -> Tiny:
    return next(tiny for tiny in ZOO if tiny.name == name)


# Experts, which alone can be cut by expert-parallelism; and the only attention of Megatron's own, which no
# context-parallelism cuts (learnt sinks).
EXPERTS = ("qwen3_moe", "mixtral", "gpt_oss")
NO_CONTEXT_PARALLEL = ("gpt_oss",)


@dataclass(frozen=True)
class Layout:
    """Sizes of a layout."""

    tp: int = 1
    pp: int = 1
    cp: int = 1
    ep: int = 1

    @property
    def name(self) -> str:
        return " ".join(f"{k.upper()} {v}" for k, v in vars(self).items() if v > 1) or "one rank"

    @property
    def ranks(self) -> int:
        return self.tp * self.pp * self.cp * self.ep

    def fits(self, tiny: Tiny) -> bool:
        """Whether it makes sense for a family."""
        return (self.ep == 1 or tiny.family in EXPERTS) and (
            self.cp == 1 or tiny.family not in NO_CONTEXT_PARALLEL
        )

    @property
    def flags(self) -> dict[str, Any]:
        return {"expert-model-parallel-size": self.ep} if self.ep > 1 else {}


# The first in every run of the tests.
LAYOUTS = (Layout(2, 2), Layout(), Layout(tp=2), Layout(pp=2), Layout(cp=2), Layout(ep=2))


def opposite(tiny: Tiny) -> Tiny:
    """The same with tied embeddings untied or the other way round, and a vocabulary padded or not likewise."""
    import transformers

    tied = tiny.values.get("tie_word_embeddings")
    tied = getattr(transformers, tiny.config_class)().tie_word_embeddings if tied is None else tied
    padded = tiny.values.get("vocab_size", SIZES["vocab_size"]) % 128 != 0
    name = f"{tiny.name}: {'untied' if tied else 'tied'}, {'not padded' if padded else 'padded'}"
    return replace(
        tiny, name=name,
        values={**tiny.values, "tie_word_embeddings": not tied, "vocab_size": 128 if padded else 101},
    )  # fmt: skip


def make(tiny: Tiny, folder: Path) -> Any:
    """Write the checkpoint with transformers; returns its model.

    Norm weights and biases are random too: at their usual start of one and zero a mistake in them would not
    show.
    """
    import transformers

    torch.manual_seed(11)
    config = getattr(transformers, tiny.config_class)(**{**SIZES, **tiny.values})
    model = getattr(transformers, tiny.model_class)._from_config(config, attn_implementation="eager").float()
    with torch.no_grad():
        for param in model.parameters():
            if param.dim() == 1:
                param.add_(torch.randn_like(param) * 0.2)
    model = model.to(getattr(torch, tiny.dtype)).eval()
    model.save_pretrained(folder)
    return model


def tokens(count: int = 24, vocab: int = 100) -> list[int]:
    """Input that every family's vocabulary holds."""
    return torch.randint(vocab, (count,), generator=torch.Generator().manual_seed(5)).tolist()
