"""Pictures of an analysis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megatron_moo.analyze.curves import CURVES


def write_plots(found: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """Curves of all measures over layers (one line per model), CKA matrices and planes of three layers of each model.

    Returns:
        the files: ``layers.png`` and ``NAME-cka.png``, ``NAME-plane.png`` per model.
    """
    import matplotlib

    matplotlib.use("Agg")
    written = [_curves(found, folder / "layers.png")]
    for item in found:
        written.append(_matrices(item, folder / f"{item['model']}-cka.png"))
        written.append(_planes(item, folder / f"{item['model']}-plane.png"))
    return written


def _curves(found: Sequence[Mapping[str, Any]], path: Path) -> Path:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 4, figsize=(15, 6), layout="constrained")
    for axis, (name, title) in zip(axes.flat, CURVES.items(), strict=True):
        for item in found:
            known = [(layer["layer"], layer[name]) for layer in item["layers"] if name in layer]
            if known:
                axis.plot(*zip(*known, strict=True), marker="o", markersize=3, label=item["model"])
        if name == "cka":
            for item in found:
                known = [(layer["layer"], layer["cka_chance"]) for layer in item["layers"]]
                axis.plot(*zip(*known, strict=True), linestyle=":", color="grey", label="sentences shuffled")
        if name in found[0]["chance"]:
            axis.axhline(found[0]["chance"][name], linestyle=":", color="grey", label="chance")
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("layer", fontsize=8)
    axes.flat[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def _three(item: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    layers = item["layers"]
    return [layers[i] for i in sorted({0, len(layers) // 2, len(layers) - 1})]


def _matrices(item: Mapping[str, Any], path: Path) -> Path:
    import matplotlib.pyplot as plt

    layers, tags = _three(item), item["languages"]
    figure, axes = plt.subplots(
        1, len(layers), figsize=(4.2 * len(layers), 4), layout="constrained", squeeze=False
    )
    for axis, layer in zip(axes.flat, layers, strict=True):
        image = axis.imshow(np.array(layer["cka_matrix"]), vmin=0, vmax=1, cmap="viridis")
        axis.set_xticks(range(len(tags)), tags, fontsize=7)
        axis.set_yticks(range(len(tags)), tags, fontsize=7)
        axis.set_title(f"{item['model']}, layer {layer['layer']}: CKA", fontsize=9)
    figure.colorbar(image, ax=axes, shrink=0.8)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def _planes(item: Mapping[str, Any], path: Path) -> Path:
    import matplotlib.pyplot as plt

    layers = _three(item)
    figure, axes = plt.subplots(
        1, len(layers), figsize=(4.2 * len(layers), 4), layout="constrained", squeeze=False
    )
    for axis, layer in zip(axes.flat, layers, strict=True):
        for tag, points in zip(item["languages"], np.array(layer["plane"]), strict=True):
            axis.scatter(points[:, 0], points[:, 1], s=6, alpha=0.6, label=tag)
        axis.set_title(f"{item['model']}, layer {layer['layer']}: first two components", fontsize=9)
        axis.set_xticks([])
        axis.set_yticks([])
    axes.flat[0].legend(fontsize=7, markerscale=2)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
