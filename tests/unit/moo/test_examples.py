"""The example runs, and its paths go where the methods promise."""

from __future__ import annotations

import runpy
from pathlib import Path

import matplotlib.image
import torch

from megatron_moo.moo import METHODS

EXAMPLE = Path(__file__).parents[3] / "examples" / "two_objectives.py"


def test_two_objectives(tmp_path: Path) -> None:
    module = runpy.run_path(str(EXAMPLE))
    paths = module["main"](["--out", str(tmp_path / "picture.png"), "--steps", "25"])
    assert set(METHODS) <= set(paths)
    losses = module["losses"]
    for name, visited in paths.items():
        assert visited.shape == (26, 5, 2) and visited.isfinite().all(), name
    bowl = 1  # the start where both losses are smooth: a step is as good as its direction
    for name, spec in METHODS.items():
        if spec.non_conflicting:
            assert (losses(paths[name][-1, bowl]) < losses(paths[name][0, bowl])).all(), name
    assert not torch.allclose(paths["mean"][-1], paths["mgda"][-1])
    picture = matplotlib.image.imread(tmp_path / "picture.png")
    assert picture.shape[0] > 800 and picture.shape[1] > 1200
    assert len(set(map(tuple, picture[::7, ::7].reshape(-1, 4).round(2).tolist()))) > 50, "not blank"
