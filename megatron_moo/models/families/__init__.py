"""Model families: one short file each, from Hugging Face's config and names to Megatron's."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module

from megatron_moo.errors import MooError
from megatron_moo.models.families.config import Config
from megatron_moo.models.families.model import Family, Model

# Module of this package and the families in it.
_FILES = {
    "llama": ("FAMILY",),
    "qwen": ("QWEN2", "QWEN3"),
    "mistral": ("FAMILY",),
    "smollm3": ("FAMILY",),
    "granite": ("FAMILY",),
    "gemma": ("GEMMA2", "GEMMA3"),
    "olmo": ("OLMO2", "OLMO3"),
    "apertus": ("FAMILY",),
    "cohere": ("COHERE", "COHERE2"),
    "moe": ("QWEN3_MOE", "MIXTRAL"),
    "gpt_oss": ("FAMILY",),
}


def families() -> Iterator[Family]:
    """Every family that can be converted."""
    for module, names in _FILES.items():
        place = import_module(f"{__name__}.{module}")
        yield from (getattr(place, name) for name in names)


def family_of(architecture: str, where: str = "config.json") -> Family:
    """The family that reads an architecture.

    Raises:
        MooError: for an architecture that no family reads, naming those that can be.
    """
    known = {name: family for family in families() for name in family.architectures}
    if architecture not in known:
        raise MooError(
            f"architecture {architecture!r} is not known", where, f"known are {', '.join(sorted(known))}"
        )
    return known[architecture]


def read_model(config: Config) -> Model:
    """The model that a Hugging Face config describes.

    Raises:
        MooError: for an unknown architecture, and for every key whose value we do not follow exactly.
    """
    model = family_of(config.architecture, config.where).read(config)
    config.fixed("quantization_config", {})
    config.finish()
    return model
