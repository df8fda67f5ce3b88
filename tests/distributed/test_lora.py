"""Adapters out of training: saved at one layout, merged, and judged by transformers and peft."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_moo.buckets.seam_optimizer import make_resumable
from megatron_moo.errors import MooError
from tests.distributed.case import Case, batch
from tests.distributed.llama import GROUPS, tiny_llama
from tests.distributed.matrix import LORA, SEQUENCE, UNTIED
from tests.distributed.ranks import build, start
from tests.distributed.sharding import set_weights
from tests.pool import RankPool

LLAMA = (*UNTIED, "--group-query-attention", "--num-query-groups", str(GROUPS))
ADAPTED = Case("lora", weights="transformers", flags=(*LLAMA, *LORA))
# Saved by four ranks: the factors are cut over tensor ranks, the layers over pipeline stages.
SPREAD = dataclasses.replace(ADAPTED, tp=2, pp=2, flags=(*ADAPTED.flags, *SEQUENCE))
PLAIN = dataclasses.replace(ADAPTED, flags=LLAMA)


def save_worker(rank: int, world: int, case: Case, folder: str) -> None:
    """Save a checkpoint of the case's model and optimizer at its layout."""
    from megatron.training.checkpointing import save_checkpoint

    case = dataclasses.replace(
        case,
        flags=(*case.flags, "--save", folder, "--save-interval", "1", "--dist-ckpt-optim-fully-reshardable"),
    )
    model, optimizer, scheduler = build(case, start(case))
    make_resumable(optimizer)
    save_checkpoint(3, model, optimizer, scheduler, 0)


def logits_worker(rank: int, world: int, case: Case, load: str | None = None) -> torch.Tensor:
    """Logits ``[b, s, vocab]`` of one process on an agreed batch; ``load`` names a checkpoint to read."""
    from megatron.training.checkpointing import load_checkpoint

    from megatron_moo.models.gpt import build_model

    flags = case.flags if load is None else (*case.flags, "--load", load, "--finetune")
    case = dataclasses.replace(case, flags=flags)
    model = build_model(start(case, alone=True))

    class Chunk:
        module, config = model, model.config

    if load is None:
        set_weights([Chunk], case)
    else:
        load_checkpoint([model], None, None)
    return logits_of(model, case)


def logits_of(model: Any, case: Case) -> torch.Tensor:
    item = batch(case, 0, 0, 0, 0, 0)
    model.eval()
    with torch.no_grad():
        return model(item["tokens"], item["position_ids"], None)


def merged_in_place_worker(rank: int, world: int, case: Case) -> torch.Tensor:
    from megatron_moo.models.gpt import build_model
    from megatron_moo.models.lora import merge

    model = build_model(start(case, alone=True))

    class Chunk:
        module, config = model, model.config

    set_weights([Chunk], case)
    merge(model)
    assert not any(param.any() for name, param in model.named_parameters() if name.endswith("lora_B"))
    return logits_of(model, case)


def convert_worker(rank: int, world: int, folder: str, merged: str, exported: str) -> dict[str, Any]:
    """Merge and export a checkpoint in this process."""
    from megatron_moo.convert.lora import export_peft, merge_checkpoint

    merge_checkpoint(Path(folder), Path(merged))
    return {"modules": export_peft(Path(folder), Path(exported), base="tiny-llama")}


def peft_worker(rank: int, world: int, case: Case, folder: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of transformers' Llama, without and with the adapter in ``folder`` as peft reads it."""
    from peft import PeftModel

    tokens = batch(case, 0, 0, 0, 0, 0)["tokens"]
    base = tiny_llama(case).eval()
    with torch.no_grad():
        without = base(input_ids=tokens).logits
        return without, PeftModel.from_pretrained(base, folder).eval()(input_ids=tokens).logits


@pytest.mark.timeout(300)
def test_saved_merged_and_exported(pool: RankPool, tmp_path: Path) -> None:
    """One function, four forms: Megatron with adapters, resharded, merged, and Hugging Face with the export."""
    saved, merged, exported = (str(tmp_path / name) for name in ("saved", "merged", "exported"))
    pool.run(save_worker, SPREAD.world, SPREAD, saved)
    adapted = pool.run(logits_worker, 1, ADAPTED)[0]
    plain = pool.run(logits_worker, 1, PLAIN)[0]
    assert (adapted - plain).abs().max() > 0.1, "adapters that change nothing would hide a wrong export"
    close = {"rtol": 0, "atol": 1e-5}
    torch.testing.assert_close(pool.run(logits_worker, 1, ADAPTED, saved)[0], adapted, **close)
    torch.testing.assert_close(pool.run(merged_in_place_worker, 1, ADAPTED)[0], adapted, **close)

    modules = pool.run(convert_worker, 1, saved, merged, exported)[0]["modules"]
    assert modules == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    torch.testing.assert_close(pool.run(logits_worker, 1, PLAIN, merged)[0], adapted, **close)
    without, with_adapter = pool.run(peft_worker, 1, ADAPTED, exported)[0]
    torch.testing.assert_close(without, plain, **close)
    torch.testing.assert_close(with_adapter, adapted, **close)
    config = json.loads((tmp_path / "exported" / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (4, 8.0, "tiny-llama")


def refusal_worker(rank: int, world: int, case: Case) -> str:
    from megatron_moo.models.gpt import build_model

    args = start(case, alone=True)
    with pytest.raises(MooError) as caught:
        build_model(args)
    return str(caught.value)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--freeze", "."), "--freeze: '.' freezes every parameter; leave some to train"),
        (("--freeze", "no_such_layer"), "--freeze: 'no_such_layer' is found in no parameter; names are like"),
        (("--lora-rank", "0"), "--lora-rank: 0 is not a rank"),
        (("--lora-rank", "2", "--lora-targets", "q_proj"), "--lora-targets: unknown layer 'q_proj'"),
    ],
)
def test_refused_before_training(pool: RankPool, flags: tuple[str, ...], message: str) -> None:
    said = pool.run(refusal_worker, 1, Case("refused", flags=flags))[0]
    assert said.startswith(message) and "\n" not in said


@pytest.mark.timeout(200)
def test_checkpoints_that_do_not_fit(pool: RankPool, tmp_path: Path) -> None:
    """Adapters are never dropped, resized or taken for granted in silence."""
    adapted, plain = str(tmp_path / "adapted"), str(tmp_path / "plain")
    pool.run(save_worker, 1, ADAPTED, adapted)
    pool.run(save_worker, 1, PLAIN, plain)
    for flags, message in (
        (("--load", adapted), "it holds adapters of rank 4, which would be left out; add --lora-rank 4"),
        (("--load", adapted, "--lora-rank", "8"), "have rank 4, not 8"),
        (
            ("--load", plain, "--lora-rank", "4"),
            "it holds no adapters to go on with; name it with --pretrained",
        ),
    ):
        case = dataclasses.replace(PLAIN, flags=(*PLAIN.flags, *flags))
        assert message in pool.run(refusal_worker, 1, case)[0]


def dropout_worker(rank: int, world: int, case: Case) -> dict[str, torch.Tensor]:
    """What the adapter's dropout leaves of ones on this rank, for a whole and for a cut activation."""
    from megatron_moo.models.gpt import build_model
    from megatron_moo.models.lora import adapted_layers

    layers = adapted_layers(build_model(start(case)))
    column, row = (
        layers[f"decoder.layers.0.self_attention.{name}"] for name in ("linear_qkv", "linear_proj")
    )
    ones = torch.ones(1000)
    kept = {"whole": column.dropped(ones, sharded=False), "cut": row.dropped(ones, sharded=True)}
    column.eval()
    return {**kept, "eval": column.dropped(ones, sharded=False)}


def test_dropout_is_the_same_where_activations_are(pool: RankPool) -> None:
    case = Case("dropout", tp=2, flags=(*LORA, "--lora-dropout", "0.25"))
    one, other = pool.run(dropout_worker, 2, case)
    assert torch.equal(one["whole"], other["whole"]) and not torch.equal(one["cut"], other["cut"])
    for values in (one["whole"], one["cut"]):
        assert values.unique().tolist() == pytest.approx([0.0, 4 / 3])
        assert 0.18 < float((values == 0).float().mean()) < 0.32
    assert bool((one["eval"] == 1).all())
