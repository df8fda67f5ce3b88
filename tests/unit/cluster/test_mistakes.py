"""What `megatron-moo plan` is asked wrongly is one line that names the flag, and status 2."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

from megatron_moo.cli import main
from megatron_moo.cluster.settle import refusals
from megatron_moo.errors import MooError
from tests.end_to_end.conftest import TINY

GQA = ("--group-query-attention", "--num-query-groups")
FULL = "set recompute-granularity: full, recompute-method: uniform, recompute-num-layers: 1"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plan")
    tags = "".join(f"  {tag}: {{train: [{tag}.txt]}}\n" for tag in ("el", "ko", "tr"))
    (folder / "languages.yaml").write_text(f"tokenizer: byte\nlanguages:\n{tags}", encoding="utf-8")
    path = folder / "tiny.yaml"
    path.write_text(TINY.format(languages="languages.yaml"), encoding="utf-8")
    return path


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("flags", "line"),
    [
        # Sizes that Megatron would divide by, or build a model of.
        (("--micro-batch-size", "0"), "--micro-batch-size: is 0, a whole number from 1 was expected; give"),
        (("--tensor-model-parallel-size", "0"), "--tensor-model-parallel-size: is 0, "),
        (("--num-layers", "0"), "--num-layers: is 0, "),
        (("--hidden-size", "-4096"), "--hidden-size: is -4096, "),
        (("--vocab-size", "-5"), "--vocab-size: is -5, "),
        (("--hidden-size", "33"), "--num-attention-heads: 2 heads do not divide hidden-size 33; give a divisor"),
        (("--num-attention-heads", "3"), "--num-attention-heads: 3 heads do not divide hidden-size 32; "),
        (("--tensor-model-parallel-size", "4"), "--tensor-model-parallel-size: 2 attention heads do not divide"),
        (("--recompute-granularity", "full"), f"--recompute-granularity: full recomputation needs recompute-method, "
         f"which is not set; {FULL}"),
        (("--num-attention-heads", "32", *GQA, "5"), "--num-query-groups: 5 query groups do not divide 32 attention"),
        (("--hidden-size", "330", "--num-attention-heads", "33", *GQA, "8"), "--num-query-groups: 8 query groups do"),
        # What only Megatron knows.
        (("--pipeline-model-parallel-size", "2", "--num-layers", "3"),
         "--pipeline-model-parallel-size: Megatron refuses it: Number of layers should be divisible by the pipeline"),
        (("--window-attn-skip-freq", "["), "--window-attn-skip-freq: '[' is no pattern ('[' was never closed); give"),
        # What train refuses.
        (("--fp16",), "--fp16: fp16 loss scaling does not work with MOO"),
        (("--optimizer", "sgd"), "--optimizer sgd: SGD does not work with MOO"),
        (("--optimizer", "dist_muon"), "--optimizer dist_muon: Muon and every other layer-wise optimizer does not"),
        (("--cuda-graph-impl", "local", "--cuda-graph-scope", "full_iteration"),
         "--cuda-graph-scope full_iteration: full-iteration CUDA graphs does not work with MOO"),
        (("--experimental-attention-variant", "dsa"), "--experimental-attention-variant dsa: averaging of gradients"),
        (("--mtp-num-layers", "1"), "--mtp-num-layers 1: multi-token prediction does not work with MOO"),
        (("--ddp-reduce-scatter-with-fp32-accumulation", "false"),
         "command line: ddp-reduce-scatter-with-fp32-accumulation is 'false', MOO needs True; remove ddp-"),
        (("--fp8-format", "hybrid", "--transformer-impl", "local"), "--fp8-format: hybrid needs Transformer Engine's"),
        (("--moo-mixed", "--moo-method", "mean", "--moo-slots", "two"), "--moo-slots: 'two' is not a number of passes"),
        # The flag that is wrong is the one that is named.
        (("--pipeline-model-parallel-size", "3"), "--gpus: 4 ranks do not divide into tensor 1 x pipeline 3"),
        (("--num-distributed-optimizer-instances", "3"),
         "--num-distributed-optimizer-instances: optimizer instances 3 does not split 4 ranks; use a multiple of 3"),
        (("--expert-tensor-parallel-size", "3"), "--expert-tensor-parallel-size: expert tensor parallel size 3 does"),
        (("--gpus-per-node", "0"), "--gpus-per-node: 0 is not a number of GPUs; give a whole number from 1"),
        (("--gpus", "0"), "--gpus: 0 is not a number of GPUs"),
        (("--reserve", "-5"), "--reserve: -5 GiB cannot be taken of --gpu-memory 79; give a number from 0 to less"),
        (("--reserve", "nan"), "--reserve: nan GiB"),
        (("--reserve", "79"), "--reserve: 79 GiB"),
        (("--gpu-memory", "inf"), "--gpu-memory: inf is not a positive number; give"),
        (("--hbm", "nan"), "--hbm: nan is not a positive number"),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, tuple) else "",
)  # fmt: skip
def test_one_line_names_the_flag(
    tiny: Path, flags: tuple[str, ...], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(tiny), "--gpus", "4", *flags]) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"megatron-moo: error: {line}"), said.err
    assert said.err.count("\n") == 1 and not said.out


@pytest.mark.timeout(60)
def test_what_train_takes_is_planned_as_train_takes_it(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A machine without GPU may plan FP8, more kept rows than there are change nothing, mixed batches are train's."""
    plan = ["plan", str(tiny), "--gpus", "1"]
    assert main([*plan, "--fp8-format", "hybrid"]) == 0
    assert "Note: FP8 needs Transformer Engine on every node" in capsys.readouterr().out
    assert main([*plan, "--moo-recompute", "99"]) == 0
    said = capsys.readouterr().out
    assert "Fits, 3 slots with moo-rows fp32." in said
    assert "Note: --moo-recompute 99 keeps all rows of 3 slots: nothing is repeated" in said
    assert main([*plan, "--moo-mixed", "--moo-method", "mean", "--json"]) == 0
    assert '"global_batch_size": 6,' in capsys.readouterr().out


@pytest.mark.timeout(60)
@pytest.mark.parametrize("text", ["- a\n", "a: [1\n"])
def test_a_model_yaml_that_is_none(
    tiny: Path, tmp_path: Path, text: str, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "model.yaml").write_text(text, encoding="utf-8")
    assert main(["plan", str(tiny), "--gpus", "4", "--pretrained-checkpoint", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert f"{tmp_path}/model.yaml: not a mapping of flag names to values; import the model again" in said
    assert said.count("\n") == 1


def test_a_check_of_megatrons_without_words_is_told_by_its_source(tmp_path: Path) -> None:
    args = SimpleNamespace(hidden_size=33, num_attention_heads=2, attention_heads=1, size=3)
    # A file of its own: pytest gives asserts of tests a text.
    check = tmp_path / "check.py"
    check.write_text("assert args.hidden_size % args.num_attention_heads == 0\n", encoding="utf-8")
    with pytest.raises(MooError) as caught, refusals(args):
        runpy.run_path(str(check), {"args": args})
    assert str(caught.value) == (
        "--hidden-size, --num-attention-heads: Megatron refuses it: hidden_size % num_attention_heads == 0 is "
        "expected; change that value"
    )
    with pytest.raises(MooError, match="^--num-attention-heads: Megatron refuses it: bad"), refusals(args):
        raise ValueError("bad num attention heads")
    with pytest.raises(MooError, match="^recipe: Megatron refuses it: upper bound"), refusals(args):
        raise RuntimeError("upper bound")
