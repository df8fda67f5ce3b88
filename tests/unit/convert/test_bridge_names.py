"""Opt-in: our name maps beside those of Megatron-Bridge, a second opinion on which tensor is which.

Runs where the package ``megatron-bridge`` lies on the path (``pip install --no-deps megatron-bridge``). Its source is
read, not imported: importing it needs Transformer Engine.
"""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import pytest

from megatron_moo.models.families import read_model
from megatron_moo.models.families.config import Config
from megatron_moo.models.families.model import EXPERTS, LAYERS, Model, Rule
from tests.distributed.convert_zoo import SIZES, by_name

Names = dict[str, set[tuple[str, ...]]]
# A checkpoint of the zoo, and where Bridge keeps its family. It has none of the others.
FAMILIES = {
    "llama": "llama/llama_bridge.py", "qwen2 tied": "qwen/qwen2_bridge.py", "qwen3": "qwen/qwen3_bridge.py",
    "mistral, no window": "mistral/mistral_bridge.py", "gemma2": "gemma/gemma2_bridge.py",
    "gemma3": "gemma/gemma3_bridge.py", "qwen3_moe": "qwen/qwen3_moe_bridge.py", "gpt_oss": "gpt_oss/gpt_oss_bridge.py",
}  # fmt: skip
# Order of the parts in one tensor of Megatron's.
PARTS = (("q", "k", "v"), ("gate", "up"), ("hf_param",))


@pytest.fixture(scope="module")
def bridge() -> Path:
    """Bridge's folder of model families."""
    spec = importlib.util.find_spec("megatron.bridge")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        return Path(place) / "models"
    pytest.skip("megatron-bridge is not installed: name maps are not compared with it")


def bridge_names(path: Path) -> Names:
    """Megatron's name to Hugging Face's, in order, from a family's ``mapping_registry``."""
    found: Names = {}
    tree = ast.parse(path.read_text(encoding="utf-8"))
    registry = next(
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name == "mapping_registry"
    )
    for node in ast.walk(registry):
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                pair = [ast.literal_eval(item) for item in (key, value) if item is not None]
                ours, theirs = (
                    pair if pair[0].startswith(("decoder.", "embedding.", "output_")) else pair[::-1]
                )
                found.setdefault(ours, set()).add((theirs,))
        elif isinstance(node, ast.Call):
            given = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
            for parts in PARTS:
                if "megatron_param" in given and set(parts) <= set(given):
                    found.setdefault(given["megatron_param"], set()).add(tuple(given[part] for part in parts))
    return found


def model_of(name: str) -> Model:
    """Our model of a checkpoint of the zoo."""
    import transformers

    tiny = by_name(name)
    config = getattr(transformers, tiny.config_class)(**{**SIZES, **tiny.values}).to_dict()
    return read_model(Config({**config, "architectures": [tiny.model_class]}))


def megatron_names(rule: Rule) -> set[str]:
    """A rule's names as a module of Megatron's has them, one layer and one expert of many."""
    names = {name for name in (rule.megatron, rule.alias) if name}
    return {
        name.replace(EXPERTS, ".mlp.experts.local_experts.*.")
        .replace(LAYERS, LAYERS + "*.")
        .replace("post_norm", "post_layernorm")
        for name in names
    }


@pytest.mark.parametrize("name", FAMILIES)
def test_every_tensor_is_the_one_that_bridge_takes(bridge: Path, name: str) -> None:
    theirs, model = bridge_names(bridge / FAMILIES[name]), model_of(name)
    seen = set()
    for rule in model.rules:
        parts = tuple(part.format(layer="*", expert="*") for part in rule.hf)
        known = [theirs[key] for key in megatron_names(rule) if key in theirs]
        assert known, f"Bridge has no {rule.megatron}"
        assert all(parts in choices for choices in known), (rule.megatron, parts, known)
        seen.add(parts)
    # What it has and we lack: a head that this checkpoint ties, and layers that predict further tokens (MTP).
    extra = {part for choices in theirs.values() for parts in choices for part in parts} - {
        part for parts in seen for part in parts
    }
    assert {part for part in extra if not part.startswith("mtp.")} <= {"lm_head.weight"}
