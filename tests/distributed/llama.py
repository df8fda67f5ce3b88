"""A tiny Hugging Face Llama as an outside judge, and its parameters under Megatron's names."""

from __future__ import annotations

from typing import Any

import torch

from tests.distributed.case import VOCAB, Case, batch
from tests.distributed.ranks import solved

HEADS, GROUPS = 4, 2


def tiny_llama(case: Case) -> Any:
    """A random Llama of the case's size with grouped-query attention and its own output layer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(case.seed)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=case.hidden, intermediate_size=48, num_hidden_layers=case.layers,
        num_attention_heads=HEADS, num_key_value_heads=GROUPS, max_position_embeddings=case.seq, rms_norm_eps=1e-5,
        tie_word_embeddings=False, rope_theta=10000.0, initializer_range=0.15,
    )  # fmt: skip
    return LlamaForCausalLM(config).float()


def to_megatron(params: dict[str, torch.Tensor], case: Case) -> dict[str, torch.Tensor]:
    """Parameters (or gradients) of the Llama under Megatron's names and layouts; a linear map."""
    out = {
        "embedding.word_embeddings.weight": params["model.embed_tokens.weight"],
        "decoder.final_layernorm.weight": params["model.norm.weight"],
        "output_layer.weight": params["lm_head.weight"],
    }
    size = case.hidden // HEADS
    for layer in range(case.layers):
        hf, mg = f"model.layers.{layer}.", f"decoder.layers.{layer}."
        q, k, v = (params[f"{hf}self_attn.{name}_proj.weight"] for name in "qkv")
        # Megatron keeps the queries of a group beside its key and value.
        groups = zip(q.split(size * HEADS // GROUPS), k.split(size), v.split(size), strict=True)
        out[mg + "self_attention.linear_qkv.weight"] = torch.cat([torch.cat(group) for group in groups])
        out[mg + "self_attention.linear_proj.weight"] = params[hf + "self_attn.o_proj.weight"]
        gate, up = params[hf + "mlp.gate_proj.weight"], params[hf + "mlp.up_proj.weight"]
        out[mg + "mlp.linear_fc1.weight"] = torch.cat([gate, up])
        out[mg + "mlp.linear_fc2.weight"] = params[hf + "mlp.down_proj.weight"]
        out[mg + "input_layernorm.weight"] = params[hf + "input_layernorm.weight"]
        out[mg + "pre_mlp_layernorm.weight"] = params[hf + "post_attention_layernorm.weight"]
    return {name: value.detach() for name, value in out.items()}


def llama_worker(rank: int, world: int, case: Case) -> dict[str, Any]:
    """The reference step computed by transformers and torch.autograd alone."""
    model = tiny_llama(case)
    params = dict(model.named_parameters())
    sums = [{name: torch.zeros_like(p) for name, p in params.items()} for _ in range(case.objectives)]
    tokens = torch.zeros(case.objectives, dtype=torch.float64)
    for slot in range(case.slots):
        for lane in range(case.lanes):
            for micro_batch in range(case.micro_batches):
                item = batch(case, 0, slot, lane, 0, micro_batch)
                objective = case.assignment(0)[slot][lane]
                logits = model(input_ids=item["tokens"]).logits
                losses = torch.nn.functional.cross_entropy(
                    logits.flatten(0, 1), item["labels"].flatten(), reduction="none"
                )
                grads = torch.autograd.grad(
                    (losses * item["loss_mask"].flatten()).sum(), list(params.values())
                )
                for name, grad in zip(params, grads, strict=True):
                    sums[objective][name] += grad
                tokens[objective] += float(item["loss_mask"].sum())
    rows = [
        to_megatron({name: g / tokens[k].float() for name, g in row.items()}, case)
        for k, row in enumerate(sums)
    ]
    return solved(case, rows, tokens, 0)
