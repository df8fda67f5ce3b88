"""What the decoder families share: sizes, flags and rules."""

from __future__ import annotations

from typing import Any

from megatron_moo.errors import MooError
from megatron_moo.models.families.config import Config, checked_number
from megatron_moo.models.families.layouts import COPY, GATE_UP, QKV_GROUPS
from megatron_moo.models.families.model import Rule

M, H = "decoder.layers.", "model.layers.{layer}."
INPUT_NORM = M + "self_attention.linear_qkv.layer_norm_weight"
MLP_NORM = M + "mlp.linear_fc1.layer_norm_weight"
# Where Transformer Engine's spec keeps the norm in front of experts.
MOE_NORM = M + "pre_mlp_layernorm.weight"
# Rows of the embedding are padded so that any tensor-parallel size up to this cuts them evenly.
_ROWS = 128


def sizes(config: Config, ffn: str = "intermediate_size", head_dim: bool = True) -> dict[str, int]:
    """Sizes of a decoder by name: vocab, hidden, ffn, heads, groups, head, q, kv.

    Raises:
        MooError: for sizes that do not fit each other.
    """
    hidden, heads = (
        config.integer("hidden_size", high=1 << 20),
        config.integer("num_attention_heads", high=1 << 14),
    )
    groups = config.integer("num_key_value_heads", heads, high=heads)
    given = config.get("head_dim")
    head = hidden // heads if given is None or not head_dim else config.integer("head_dim", high=1 << 14)
    if given is None and hidden % heads:
        raise MooError(f"hidden_size {hidden} is not a multiple of num_attention_heads {heads}", config.where)
    if heads % groups:
        raise MooError(
            f"num_attention_heads {heads} is not a multiple of num_key_value_heads {groups}", config.where
        )
    return {
        "vocab": config.integer("vocab_size"),
        "hidden": hidden,
        "ffn": config.integer(ffn),
        "heads": heads,
        "groups": groups,
        "head": head,
        "q": heads * head,
        "kv": groups * head,
    }


def base_flags(
    config: Config, dims: dict[str, int], eps: str = "rms_norm_eps", eps_default: float = 1e-6
) -> dict[str, Any]:
    """Megatron's flags that follow from the sizes: an RMSNorm decoder without biases and dropout."""
    rows = -(-dims["vocab"] // _ROWS) * _ROWS
    config.unused("attention_dropout")
    return {
        "num-layers": config.layers(),
        "hidden-size": dims["hidden"],
        "ffn-hidden-size": dims["ffn"],
        "num-attention-heads": dims["heads"],
        "group-query-attention": True,
        "num-query-groups": dims["groups"],
        "kv-channels": dims["head"],
        "max-position-embeddings": config.integer("max_position_embeddings", 2048, high=1 << 30),
        "padded-vocab-size": rows,
        "normalization": "RMSNorm",
        "norm-epsilon": config.number(eps, eps_default, high=1.0),
        "position-embedding-type": "rope",
        "disable-bias-linear": True,
        "attention-dropout": 0.0,
        "hidden-dropout": 0.0,
    }


def base_extras(dims: dict[str, int]) -> dict[str, Any]:
    """Settings of ours that follow from the sizes: how many rows of a padded vocabulary are real."""
    return {"vocab": dims["vocab"]} if dims["vocab"] % _ROWS else {}


def tie(config: Config, flags: dict[str, Any], default: bool = False) -> bool:
    """Whether embedding and output layer are one tensor; sets the flag."""
    tied = config.flag("tie_word_embeddings", default)
    if not tied:
        flags["untie-embeddings-and-output-weights"] = True
    return tied


def rope(
    config: Config,
    flags: dict[str, Any],
    extras: dict[str, Any],
    theta: float = 10000.0,
    scaled: tuple[str, ...] = ("llama3", "linear"),
) -> None:
    """Rotary base and scaling, from ``rope_parameters`` or the older ``rope_theta`` and ``rope_scaling``.

    Raises:
        MooError: for a kind of scaling that is not among ``scaled``, or one of its parameters that we do not
            know.
    """
    new, old = rope_mappings(config)
    base, scaling = rope_settings(old or new or {}, config.number("rope_theta", theta), config.where, scaled)
    put_rope(flags, extras, base, scaling)


def rope_mappings(config: Config) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """``rope_parameters`` (None when missing) and ``rope_scaling`` (empty when missing).

    Where both stand, transformers reads the older ``rope_scaling``, unless it is empty.

    Raises:
        MooError: for one that is no mapping.
    """
    new, old = config.get("rope_parameters"), config.get("rope_scaling")
    for key, value in (("rope_parameters", new), ("rope_scaling", old)):
        if value is not None and not isinstance(value, dict):
            raise MooError(f"{key} is {value!r}, expected a mapping", config.where)
    return new, old or {}


def two_ropes(
    config: Config, flags: dict[str, Any], extras: dict[str, Any], full: float, local: float
) -> None:
    """Rope of the full layers and rope of those with a window, from the newer mapping or the older keys.

    Older configs scale the full layers' only; Gemma 3's name the other base ``rope_local_base_freq``. Where both
    stand, transformers writes ``rope_scaling`` over the full layers' entry.

    Raises:
        MooError: as :func:`rope`.
    """
    new, old = rope_mappings(config)
    given = new or {}
    full_base = config.number("rope_theta", full)
    local_base = config.number("rope_local_base_freq", full_base if full == local else local)
    parts = [given.get(kind) for kind in ("full_attention", "sliding_attention")]
    if given and not all(part is None or isinstance(part, dict) for part in parts):
        raise MooError("rope_parameters has an entry that is not a mapping", config.where)
    if set(given) - {"full_attention", "sliding_attention"}:
        raise MooError("rope_parameters is not by kind of layer", config.where)
    if old and new is not None and parts[0] is None:
        raise MooError("rope_scaling stands beside a rope_parameters without full_attention", config.where)
    if old and "rope_type" not in old and "type" in old:
        # transformers leaves the kind as it was then, and reads the rest.
        raise MooError("rope_scaling has type and no rope_type", config.where, "name the kind rope_type")
    kinds = ("linear", "llama3", "yarn")
    base, scaling = rope_settings({**(parts[0] or {}), **old}, full_base, config.where, kinds)
    other, other_scaling = rope_settings(parts[1] or {}, local_base, config.where, kinds)
    put_rope(flags, extras, base, scaling)
    if (other, other_scaling) != (base, scaling):
        extras.setdefault("rope", {"base": base, **scaling})
        extras["local_rope"] = {"base": other, **other_scaling}


def put_rope(flags: dict[str, Any], extras: dict[str, Any], base: float, scaling: dict[str, Any]) -> None:
    """Write a rotary base and its scaling as Megatron's flags where it has them, as a setting of ours otherwise."""
    whole = base == int(base)
    flags["rotary-base"] = int(base)
    if scaling or not whole:
        extras["rope"] = {"base": base, **scaling}


_ROPE_KEYS = {
    "default": {},
    "linear": {"factor": "factor"},
    "llama3": {
        "factor": "factor",
        "low_freq_factor": "low",
        "high_freq_factor": "high",
        "original_max_position_embeddings": "original",
    },
    "yarn": {
        "factor": "factor",
        "beta_fast": "beta_fast",
        "beta_slow": "beta_slow",
        "original_max_position_embeddings": "original",
        "attention_factor": "attention_factor",
        "mscale": "mscale",
        "mscale_all_dim": "mscale_all_dim",
    },
}
_YARN_OPTIONAL = ("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim")


def rope_settings(
    given: dict[str, Any], default_base: float, where: str, scaled: tuple[str, ...]
) -> tuple[float, dict[str, Any]]:
    """Base and scaling of one mapping of rope parameters.

    Raises:
        MooError: for an unknown kind or parameter.
    """
    values = dict(given)
    kind = values.pop("rope_type", values.pop("type", "default")) or "default"
    values.pop("type", None)
    base = checked_number("rope_theta", values.pop("rope_theta", default_base), where)
    if values.pop("partial_rotary_factor", 1.0) not in (None, 1, 1.0):
        raise MooError("partial_rotary_factor other than 1 is not supported", where)
    if kind != "default" and kind not in scaled:
        raise MooError(f"rope_type is {kind!r}, this family has {', '.join(('default', *scaled))}", where)
    keys = _ROPE_KEYS[kind]
    scaling: dict[str, Any] = {} if kind == "default" else {"type": kind}
    if kind == "yarn":
        truncate = values.pop("truncate", True)
        scaling["truncate"] = True if truncate is None else bool(truncate)
    if kind == "default":
        values.pop("factor", None)
    for key, name in keys.items():
        value = values.pop(key, None)
        if value is None and (kind != "yarn" or key not in _YARN_OPTIONAL):
            raise MooError(f"rope_type {kind!r} lacks {key}", where)
        if value is not None:
            scaling[name] = checked_number(key, value, where)
    left = sorted(key for key, value in values.items() if value is not None)
    if left:
        raise MooError(f"rope parameter {left[0]!r} is not known for rope_type {kind!r}", where)
    return base, scaling


def frame_rules(tied: bool) -> list[Rule]:
    """Embedding, last norm and output layer."""
    table = ("vocab", "hidden")
    rules = [
        Rule("embedding.word_embeddings.weight", ("model.embed_tokens.weight",), (table,)),
        Rule("decoder.final_layernorm.weight", ("model.norm.weight",), (("hidden",),)),
    ]
    if not tied:
        rules.append(Rule("output_layer.weight", ("lm_head.weight",), (table,)))
    return rules


def norm_rules(mlp_alias: str | None = None) -> list[Rule]:
    """The two norms in front of attention and MLP."""
    return [
        Rule(INPUT_NORM, (H + "input_layernorm.weight",), (("hidden",),)),
        Rule(MLP_NORM, (H + "post_attention_layernorm.weight",), (("hidden",),), alias=mlp_alias),
    ]


def attention_rules(qkv_bias: bool = False, out_bias: bool = False, qk_norm: bool = False) -> list[Rule]:
    """Projections of grouped-query attention."""
    names = tuple(f"{H}self_attn.{part}_proj.weight" for part in "qkv")
    biases = tuple(f"{H}self_attn.{part}_proj.bias" for part in "qkv")
    linear = M + "self_attention.linear_"
    rules = [
        Rule(linear + "qkv.weight", names, (("q", "hidden"), ("kv", "hidden"), ("kv", "hidden")), QKV_GROUPS),
        Rule(linear + "proj.weight", (H + "self_attn.o_proj.weight",), (("hidden", "q"),), COPY),
    ]
    if qkv_bias:
        rules.append(Rule(linear + "qkv.bias", biases, (("q",), ("kv",), ("kv",)), QKV_GROUPS))
    if out_bias:
        rules.append(Rule(linear + "proj.bias", (H + "self_attn.o_proj.bias",), (("hidden",),)))
    if qk_norm:
        rules += [
            Rule(
                f"{M}self_attention.{part}_layernorm.weight",
                (f"{H}self_attn.{part}_norm.weight",),
                (("head",),),
            )
            for part in "qk"
        ]
    return rules


def gated_mlp_rules() -> list[Rule]:
    """Gate, up and down projection."""
    gate_up = (H + "mlp.gate_proj.weight", H + "mlp.up_proj.weight")
    return [
        Rule(M + "mlp.linear_fc1.weight", gate_up, (("ffn", "hidden"),) * 2, GATE_UP),
        Rule(M + "mlp.linear_fc2.weight", (H + "mlp.down_proj.weight",), (("hidden", "ffn"),)),
    ]


def window_flags(flags: dict[str, Any], window: int | None, sliding: list[bool] | None = None) -> None:
    """Sliding-window attention: a token sees itself and ``window - 1`` before it.

    Args:
        flags: written to.
        window: width, or None for full attention everywhere.
        sliding: which layers have the window; all when None.
    """
    if window is None or (sliding is not None and not any(sliding)):
        return
    flags["window-size"] = f"{window - 1},0"
    if sliding is not None and not all(sliding):
        flags["window-attn-skip-freq"] = "[" + ",".join(str(int(item)) for item in sliding) + "]"
