"""All measures of all layers, as a dictionary for analysis.json."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from megatron_moo.analyze.hidden import Hidden
from megatron_moo.analyze.measures import (
    cka,
    cka_chance,
    distances,
    explained,
    language_neurons,
    linear_cka,
    linear_cka_chance,
    probe,
    retrieval,
    silhouette,
)


def analyze(hidden: Hidden, name: str, tell: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Measure every layer.

    Returns:
        ``model``, ``languages``, ``sentences``, ``chance`` {probe, retrieval}, and ``layers``: per layer the numbers of
        :data:`~megatron_moo.analyze.curves.CURVES` (``owned`` from the second on: the embedding has no MLP before it),
        matrices ``cka_matrix`` and ``retrieval_matrix`` in the order of ``languages``, ``owned_by`` per language, and
        ``plane`` ``[L, N, 2]`` (the two first principal components). ``cka_chance`` of a layer is what ``cka`` would
        be with the sentences of one language shuffled.
    """
    count, sentences = hidden.states[0].shape[:2]
    layers = []
    for number, x in enumerate(hidden.states):
        tell(f"layer {number}")
        off = ~np.eye(count, dtype=bool)
        alignment, found, apart, share = cka(x), retrieval(x), distances(x), explained(x)
        layer: dict[str, Any] = {
            "layer": number,
            "silhouette": silhouette(x),
            "probe": probe(x),
            "retrieval": float(found[off].mean()),
            "distance": float(apart[off].mean()),
            "variance_language": share["language"],
            "variance_meaning": share["meaning"],
            "cka": float(alignment[off].mean()),
            "cka_chance": float(cka_chance(x)[off].mean()),
            "cka_matrix": alignment.round(4).tolist(),
            "retrieval_matrix": found.round(4).tolist(),
            "plane": plane(x).round(4).tolist(),
        }
        if number and hidden.active:
            neurons = language_neurons(hidden.active[number - 1])
            layer["owned"], layer["entropy"] = neurons["share"], neurons["entropy"]
            layer["owned_by"] = dict(zip(hidden.languages, neurons["owned"], strict=True))
        layers.append(layer)
    return {
        "model": name,
        "languages": list(hidden.languages),
        "sentences": sentences,
        "chance": {"probe": 1.0 / count, "retrieval": 1.0 / sentences},
        "layers": layers,
    }


def plane(x: np.ndarray) -> np.ndarray:
    """The two first principal components of all sentences, ``[L, N, 2]``."""
    rows = x.reshape(-1, x.shape[-1])
    centred = rows - rows.mean(0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    return (centred @ directions[:2].T).reshape(*x.shape[:2], -1)


def between(one: Hidden, other: Hidden) -> list[dict[str, Any]]:
    """CKA between two models on the same sentences, layer by layer, over all languages together and each alone.

    Returns:
        per layer ``layer``, ``cka``, ``cka_by`` {tag: cka} and ``chance`` (of ``cka``, sentences shuffled); nothing
        for models of unequal depth.
    """
    if len(one.states) != len(other.states):
        return []
    found = []
    for number, (x, y) in enumerate(zip(one.states, other.states, strict=True)):
        by = {tag: linear_cka(x[i], y[i]) for i, tag in enumerate(one.languages)}
        a, b = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
        whole, chance = linear_cka(a, b), linear_cka_chance(a, b)
        found.append({"layer": number, "cka": whole, "cka_by": by, "chance": chance})
    return found
