"""Transformer Engine and Apex are used where they are installed: modules in their place write down what is called.

No kernel of either runs here, and none ran on real hardware yet (docs/container.md says so).
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megatron_moo.errors import MooError
from megatron_moo.training import fused, platform
from tests.end_to_end.conftest import ROOT, TINY


def built(what: str, folder: Path) -> dict[str, Any]:
    tags = "".join(f"  {tag}: {{train: [{tag}.txt]}}\n" for tag in ("el", "ko"))
    (folder / "languages.yaml").write_text(f"tokenizer: byte\nlanguages:\n{tags}", encoding="utf-8")
    recipe = folder / "tiny.yaml"
    recipe.write_text(TINY.format(languages="languages.yaml"), encoding="utf-8")
    command = [sys.executable, "-m", "tests.unit.training.fused_program", what, str(recipe), str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.timeout(120)
def test_transformer_engines_norms_attention_fp8_and_adam(tmp_path: Path) -> None:
    found = built("engine", tmp_path)
    assert found["flags"]["transformer-impl"] == "transformer_engine"
    # Megatron's own output layer would refuse to start: the extension is Apex's, which is not here.
    assert found["flags"]["no-gradient-accumulation-fusion"] is True and found["fusion"] is False
    names = {name.removeprefix("transformer_engine.pytorch.") for name in found["calls"]}
    assert {"LayerNormLinear", "Linear", "DotProductAttention", "RMSNorm"} <= names, (
        "fused norms and attention"
    )
    assert "TEDotProductAttention" in found["modules"]
    assert not {"Norm", "CoreAttention"} & set(found["modules"]), "nothing of the local spec"
    assert [call["num_attention_heads"] for call in found["attention"]] == [2, 2], "one a layer"
    assert (
        found["fp8"] == [{"enabled": True}]
        and "transformer_engine.common.recipe.DelayedScaling" in found["calls"]
    )
    assert found["optimizer"] == "transformer_engine.pytorch.optimizers.FusedAdam"
    assert found["line"].startswith("Transformer Engine") and "fp8 hybrid" in found["line"]
    assert found["line"].endswith("Transformer Engine's multi-tensor Adam")


@pytest.mark.timeout(120)
def test_apexs_layer_norm_weight_gradients_and_adam(tmp_path: Path) -> None:
    found = built("apex", tmp_path)
    assert found["flags"]["transformer-impl"] == "local"
    assert found["flags"]["no-gradient-accumulation-fusion"] is False and found["fusion"] is True
    assert "FusedLayerNorm" in found["modules"] and "Norm" not in found["modules"]
    assert found["optimizer"] == "apex.optimizers.FusedAdam"
    assert found["line"] == "local layer spec, Apex's multi-tensor Adam"


def test_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "has_gpu", lambda: True)
    flags = platform.default_flags()
    assert flags == {**platform.LOCAL_GPU_FLAGS, "no-gradient-accumulation-fusion": True}
    assert fused.describe(flags) == "local layer spec, torch's Adam"


def test_fp8_without_its_kernels_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, engine = SimpleNamespace(fp8="hybrid"), {"transformer-impl": "transformer_engine"}
    fused.check_fp8(SimpleNamespace(fp8=None), {})
    with pytest.raises(MooError, match="--fp8-format: hybrid needs a GPU, which is not here"):
        fused.check_fp8(asked, engine)
    monkeypatch.setattr(platform, "has_gpu", lambda: True)
    with pytest.raises(MooError, match="needs Transformer Engine, which is not here"):
        fused.check_fp8(asked, engine)
    monkeypatch.setattr(platform, "has_transformer_engine", lambda: True)
    fused.check_fp8(asked, engine)
    with pytest.raises(MooError, match="drop --transformer-impl local"):
        fused.check_fp8(asked, {"transformer-impl": "local"})
