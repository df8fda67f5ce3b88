"""Our norm and attention against torch and a plain softmax."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from megatron_moo.models.modules.attention import CoreAttention, zigzag_positions
from megatron_moo.models.modules.norm import Norm
from tests.pool import RankPool


def norm_config(**kw: Any) -> Any:
    return SimpleNamespace(
        **{"normalization": "RMSNorm", "layernorm_zero_centered_gamma": False, "sequence_parallel": False,
           "params_dtype": torch.float32, **kw}
    )  # fmt: skip


def test_rms_norm_by_its_formula() -> None:
    norm = Norm(norm_config(), 8, eps=1e-3)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(5, 8)
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt() * norm.weight
    torch.testing.assert_close(norm(x), expected)


def test_zero_centred_weight_is_one_plus_w() -> None:
    plain, centred = Norm(norm_config(), 8), Norm(norm_config(layernorm_zero_centered_gamma=True), 8)
    assert torch.equal(centred.weight, torch.zeros(8))
    with torch.no_grad():
        plain.weight.add_(0.5)
        centred.weight.add_(0.5)
    x = torch.randn(3, 8)
    torch.testing.assert_close(plain(x), centred(x))


def test_layer_norm_has_a_bias_and_marks() -> None:
    norm = Norm(norm_config(normalization="LayerNorm", sequence_parallel=True), 8)
    assert norm.weight.sequence_parallel and norm.bias.sequence_parallel
    x = torch.randn(3, 8)
    torch.testing.assert_close(norm(x), torch.nn.functional.layer_norm(x, (8,), eps=1e-5))


def test_unknown_norm() -> None:
    with pytest.raises(ValueError, match="L1Norm"):
        Norm(norm_config(normalization="L1Norm"), 8)


def plain_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, allowed: torch.Tensor, scale: float
) -> torch.Tensor:
    """Softmax attention written out; ``[s, b, heads, d]`` in, ``[s, b, heads * d]`` out, in fp64."""
    repeat = q.shape[2] // k.shape[2]
    q, k, v = q.double(), k.double().repeat_interleave(repeat, 2), v.double().repeat_interleave(repeat, 2)
    scores = torch.einsum("qbhd,kbhd->bhqk", q, k) * scale
    probabilities = scores.masked_fill(~allowed, float("-inf")).softmax(-1)
    return torch.einsum("bhqk,kbhd->qbhd", probabilities, v).flatten(2)


def attention_worker(rank: int, world: int) -> dict[str, float]:
    """Largest error of the core attention over masks, windows and grouped queries, on one rank."""
    from megatron.core import parallel_state

    parallel_state.initialize_model_parallel()
    config = SimpleNamespace(
        softmax_type="vanilla", kv_channels=8, apply_query_key_layer_scaling=False, window_size=None,
        window_attn_skip_freq=None, attention_dropout=0.0, sequence_parallel=False,
    )  # fmt: skip
    torch.manual_seed(0)
    s, b = 12, 2
    q, k, v = torch.randn(s, b, 4, 8), torch.randn(s, b, 2, 8), torch.randn(s, b, 2, 8)
    causal = torch.ones(s, s, dtype=torch.bool).tril()
    documents = torch.tensor([0] * 5 + [1] * 7)
    same = documents[:, None] == documents[None, :]
    near = (torch.arange(s)[:, None] - torch.arange(s)[None, :]) <= 3
    found = {}
    for name, window, forbidden, allowed in (
        ("causal", None, None, causal),
        ("documents", None, ~same[None, None], causal & same),
        ("window", (3, 0), None, causal & near),
        ("window and documents", (3, 0), ~same[None, None], causal & near & same),
    ):
        config.window_size = window
        attention = CoreAttention(config, 1, None, "self")
        out = attention(q, k, v, forbidden)
        found[name] = float((out - plain_attention(q, k, v, allowed, 8**-0.5)).abs().max())
    return found


def test_core_attention(pool: RankPool) -> None:
    [found] = pool.run(attention_worker, 1)
    assert len(found) == 4
    assert max(found.values()) <= 1e-6, found


def test_zigzag_positions_cover_the_sequence() -> None:
    positions = zigzag_positions(16, 2, torch.device("cpu"))
    assert positions.tolist() == [[0, 1, 2, 3, 12, 13, 14, 15], [4, 5, 6, 7, 8, 9, 10, 11]]
    for size in (1, 2, 4):
        assert sorted(zigzag_positions(32, size, torch.device("cpu")).flatten().tolist()) == list(range(32))
