"""`megatron-moo eval` against what the run itself measured, and against lm-evaluation-harness."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.unit.evaluate.tiny import byte_pieces, tiny_model, write_text

ROOT = Path(__file__).resolve().parents[2]
COMMAND = Path(sys.executable).parent / "megatron-moo"


def _call(*arguments: object, cwd: Path) -> str:
    done = subprocess.run(
        [COMMAND, *map(str, arguments)],
        capture_output=True, text=True, timeout=240, cwd=cwd, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_run_is_evaluated_as_its_own_validation_did(tmp_path: Path) -> None:
    # Without padding rows of the embedding: the exporter cuts them, and with them their part of the softmax.
    recipe = (ROOT / "examples" / "quickstart.yaml").read_text()
    recipe = recipe.replace("udhr/languages.yaml", str(ROOT / "examples" / "udhr" / "languages.yaml"))
    (tmp_path / "recipe.yaml").write_text(recipe)
    flags = ["--train-iters", "4", "--num-layers", "2", "--hidden-size", "64", "--ffn-hidden-size", "96"]
    flags += [
        "--moo-slots",
        "14",
        "--nproc",
        "1",
        "--lr-warmup-fraction",
        "0",
        "--run-dir",
        str(tmp_path / "run"),
    ]
    flags += ["--make-vocab-size-divisible-by", "1"]
    _call("train", "recipe.yaml", *flags, cwd=tmp_path)
    shown = _call("eval", tmp_path / "run", "--new-tokens", 3, cwd=tmp_path)
    found = json.loads((tmp_path / "run" / "eval.json").read_text())
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    last = [record for record in records if record.get("event") == "valid"][-1]
    assert last["step"] == 4 and set(found["languages"]) == set(last["loss"])
    for tag, item in found["languages"].items():
        assert item["loss"] == pytest.approx(last["loss"][tag], abs=2e-5)
        assert item["bits_per_byte"] == pytest.approx(last["bits_per_byte"][tag], abs=2e-5)
    assert "bits/byte" in shown


@pytest.mark.slow
@pytest.mark.parametrize("begin", [False, True], ids=["none", "begin"])
def test_cloze_is_that_of_the_harness(tmp_path: Path, begin: bool) -> None:
    """Whether or not the tokenizer puts a piece before every text, as Llama-3's and Gemma's do."""
    hf = tiny_model(tmp_path / "hf", vocab=258, positions=256)
    byte_pieces(hf, begin)
    text = write_text(tmp_path / "text", pages=20)
    tasks = tmp_path / "tasks"
    out = tmp_path / "eval.json"
    arguments = [
        "eval",
        hf,
        "--text",
        text,
        "--items",
        40,
        "--new-tokens",
        0,
        "--lm-eval",
        "--task-dir",
        tasks,
    ]
    _call(*arguments, "--out", out, cwd=tmp_path)
    found = json.loads(out.read_text())
    assert found["cloze"]["items"] == 40 and found["bos"] == (["<begin>"] if begin else [])
    for tag, item in found["languages"].items():
        ours, theirs = item["cloze"], item["lm_eval"]
        assert (ours["acc"], ours["acc_norm"]) == pytest.approx(
            (theirs["acc"], theirs["acc_norm"]), abs=1e-9
        ), tag
        assert 0 < ours["acc"] < 1, tag
    assert sorted(path.name for path in tasks.iterdir()) == ["aa.jsonl", "aa.yaml", "bb.jsonl", "bb.yaml"]


@pytest.mark.slow
def test_log_likelihoods_are_those_of_the_harness(tmp_path: Path) -> None:
    """Accuracies of a random model may agree by chance; sums of logarithms do not."""
    from lm_eval.api.instance import Instance

    from megatron_moo.evaluate.harness import _model
    from megatron_moo.evaluate.model import open_model
    from megatron_moo.evaluate.scorer import Scorer, pair

    pairs = [("abc", "\ndef"), ("x" * 200, "\ny" * 40), ("ab  ", "c"), ("a", "\nb")]
    for begin in (False, True):
        hf = tiny_model(tmp_path / f"hf-{begin}", vocab=258, positions=256)
        byte_pieces(hf, begin)
        with open_model(hf) as opened:
            theirs = _model(opened, 2).loglikelihood(
                [Instance("loglikelihood", {}, one, number) for number, one in enumerate(pairs)]
            )
            requests = [pair(opened.tokenizer, *one, opened.bos) for one in pairs]
            ours = Scorer(opened.model, 256).loglikelihoods(requests)
        assert ours == pytest.approx([value for value, _ in theirs], rel=1e-5)


@pytest.mark.slow
def test_tasks_by_name_from_a_folder(tmp_path: Path) -> None:
    """A task of one's own and a group of it; the accuracy is the cloze's, whose files they are."""
    hf = tiny_model(tmp_path / "hf", vocab=258, positions=256)
    byte_pieces(hf, begin=True)
    text = write_text(tmp_path / "text", pages=20)
    tasks = tmp_path / "tasks"
    common = ["--text", text, "--items", 20, "--new-tokens", 0]
    _call("eval", hf, *common, "--lm-eval", "--task-dir", tasks, "--out", tmp_path / "a.json", cwd=tmp_path)
    shown = _call(
        "eval", hf, "--tasks", "moo_cloze_aa,moo_cloze_bb", "--task-dir", tasks, "--out", tmp_path / "b.json",
        cwd=tmp_path,
    )  # fmt: skip
    cloze = json.loads((tmp_path / "a.json").read_text())["languages"]
    found = json.loads((tmp_path / "b.json").read_text())
    assert found["languages"] == {} and set(found["tasks"]) == {"moo_cloze_aa", "moo_cloze_bb"}
    for tag, item in cloze.items():
        told = found["tasks"][f"moo_cloze_{tag}"]
        assert told["metrics"] == {name: item["lm_eval"][name] for name in ("acc", "acc_norm")}
        assert told["items"] == 20 and told["shots"] == 0 and 0 < told["stderr"]["acc"] < 0.2
    assert "moo_cloze_aa" in shown and f"{cloze['aa']['lm_eval']['acc']:.4f}" in shown


@pytest.mark.slow
def test_groups_of_the_harness_own_tasks(tmp_path: Path) -> None:
    """A group of a folder mixes a task of the folder with what lm-eval brings along; unknown names are refused."""
    from megatron_moo.errors import MooError
    from megatron_moo.evaluate.harness import _manager, run_tasks
    from megatron_moo.evaluate.model import open_model

    examples = ROOT / "examples" / "lm_eval"
    names = ["moo_belebele", "moo_global_mmlu", "moo_xnli"]
    manager = _manager(names, examples)
    for name in names:
        members = yaml.safe_load((examples / f"{name}.yaml").read_text())["task"]
        assert {name, *members} <= {*manager.all_tasks}
    hf = tiny_model(tmp_path / "hf", vocab=258, positions=64)
    byte_pieces(hf)
    with open_model(hf) as opened, pytest.raises(MooError, match="no task 'xnli_xx'"):
        run_tasks(opened, ["xnli_xx"])
