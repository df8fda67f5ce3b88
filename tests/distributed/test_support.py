"""Every row of the support table is refused, or warned of, by name."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from megatron_moo.errors import MooError
from megatron_moo.training import support
from megatron_moo.training.support import TABLE, Row, check_supported
from tests.distributed.case import Case
from tests.distributed.ranks import train_steps
from tests.end_to_end.conftest import ROOT, TINY
from tests.pool import RankPool

PAGE = ROOT / "docs" / "support.md"


def refusals_worker(rank: int, world: int) -> dict[str, str]:
    """What Megatron's parser and our check say to each row's flags."""
    from megatron_moo.training.plan import _parser
    from megatron_moo.training.platform import CPU_FLAGS
    from megatron_moo.training.recipe import to_argv

    base = [*to_argv(CPU_FLAGS), "--num-experts", "4"]
    said = {}
    for row in TABLE:
        args = _parser().parse_args([*base, *row.flags.split()])
        err = io.StringIO()
        with contextlib.redirect_stderr(err):
            try:
                check_supported(args)
                said[row.feature] = err.getvalue()
            except MooError as error:
                said[row.feature] = f"refused {error}"
    plain = _parser().parse_args(base)
    check_supported(plain)
    return said


@pytest.fixture(scope="module")
def said(pool: RankPool) -> dict[str, str]:
    return pool.run(refusals_worker, 1)[0]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.feature)
def test_row(said: dict[str, str], row: Row) -> None:
    text = said[row.feature]
    assert row.feature in text and row.why in text
    assert text.startswith("megatron-moo: warning" if row.warn else "refused")


# The flags that were given are named, however they are spelled.
SPELLED: tuple[tuple[str, str], ...] = (
    ("--optimizer muon", "--optimizer muon: Muon and every other layer-wise optimizer"),
    ("--optimizer dist_muon", "--optimizer dist_muon: Muon"),
    ("--optimizer lion", "--optimizer lion: Muon and every other"),
    ("--optimizer sgd", "--optimizer sgd: SGD"),
    ("--cuda-graph-impl full_iteration", "--cuda-graph-impl full_iteration: full-iteration CUDA graphs"),
    ("--cuda-graph-impl local --cuda-graph-scope full_iteration", "--cuda-graph-scope full_iteration: full-"),
    ("--cuda-graph-impl local --cuda-graph-modules full_iteration", "--cuda-graph-modules full_iteration: full-"),
    ("--experimental-attention-variant dsa", "--experimental-attention-variant dsa: averaging of gradients"),
    ("--hybrid-layer-pattern D-D-", "--hybrid-layer-pattern D-D-: averaging of gradients"),
    ("--use-precision-aware-optimizer --main-grads-dtype bf16", "--main-grads-dtype bf16: gradients reduced"),
    ("--fp4-param-gather", "--fp4-param-gather: fp8 and fp4 parameters"),
)  # fmt: skip


def spelled_worker(rank: int, world: int) -> list[str]:
    from megatron_moo.training.plan import read_flags
    from megatron_moo.training.platform import CPU_FLAGS
    from megatron_moo.training.recipe import to_argv

    read = [read_flags([*to_argv(CPU_FLAGS), *flags.split()]) for flags, _ in SPELLED]
    return [said_by(partial(check_supported, args)) for args in read]


def said_by(call: Callable[[], Any]) -> str:
    """What a call says: its refusal, or that there was none."""
    try:
        call()
    except MooError as error:
        return str(error)
    except (AssertionError, SystemExit) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was refused"


def test_the_flag_that_was_given_is_named(pool: RankPool) -> None:
    said = pool.run(spelled_worker, 1)[0]
    wrong = [
        f"{f}: {text}" for (f, begins), text in zip(SPELLED, said, strict=True) if not text.startswith(begins)
    ]
    assert not wrong, "\n".join(wrong)


# What each door says first. Megatron's validation turns the distributed optimizer off for the first, and the others
# come with settings of their own that MOO would refuse under another name.
FIRST: tuple[tuple[tuple[str, ...], str], ...] = (
    (("--optimizer", "muon"), "--optimizer muon: Muon"),
    (("--use-torch-fsdp2", "--untie-embeddings-and-output-weights", "--ckpt-format", "torch_dist"),
     "--use-torch-fsdp2: torch FSDP2"),
    (("--use-megatron-fsdp", "--ckpt-format", "fsdp_dtensor"), "--use-megatron-fsdp: Megatron-FSDP"),
    (("--fp16",), "--fp16: fp16 loss scaling"),
)  # fmt: skip
# A door that a team's own script opens says only what its arguments say after Megatron's validation.
SIZES = (
    "--num-layers", "2", "--hidden-size", "32", "--num-attention-heads", "2", "--seq-length", "32",
    "--max-position-embeddings", "32", "--micro-batch-size", "2", "--global-batch-size", "2", "--train-iters", "3",
    "--lr", "1e-3", "--tokenizer-type", "NullTokenizer", "--vocab-size", "257",
)  # fmt: skip


def doors_worker(rank: int, world: int, folder: Path) -> list[dict[str, str]]:
    """By door, what is said of each of :data:`FIRST`, and whether anything was built by then."""
    import os
    import sys

    from megatron.training.arguments import parse_args, validate_args

    from megatron_moo import data
    from megatron_moo.cluster.settle import settle
    from megatron_moo.training.door import complete_argv
    from megatron_moo.training.install import install
    from megatron_moo.training.plan import plan_run
    from megatron_moo.training.platform import CPU_FLAGS
    from megatron_moo.training.recipe import load_recipe, to_argv

    def build(*args: Any, **kw: Any) -> Any:
        raise AssertionError("a corpus was built")

    data.build_corpus = build
    os.environ["CUDA_DEVICE_MAX_CONNECTIONS"] = "8"  # Megatron wants that of FSDP
    os.environ.pop("WORLD_SIZE", None)
    languages = str(folder / "languages.yaml")

    def own_script(flags: tuple[str, ...], distributed: bool) -> None:
        sys.argv = ["own", *to_argv(CPU_FLAGS), *SIZES, *flags]
        sys.argv += ["--use-distributed-optimizer"] if distributed else []
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            args = parse_args()
            validate_args(args, {})
        install(args, languages=languages)

    def through(flags: tuple[str, ...]) -> dict[str, str]:
        given = (*flags, "--use-distributed-optimizer", "false", "--nproc", "1")
        recipe = load_recipe(folder / "tiny.yaml", list(given))
        door = ["door", "--languages", languages, *SIZES, *flags]
        return {
            "train": said_by(lambda: plan_run(recipe, folder / "runs", lambda text: None)),
            "plan": said_by(lambda: settle(recipe, 1, 8)),
            "tools/pretrain_gpt.py": said_by(lambda: complete_argv(door)),
            "install": said_by(lambda: own_script(flags, "--use-torch-fsdp2" not in flags)),
        }

    found = [through(flags) for flags, _ in FIRST]
    needed = ["door", "--languages", languages, *SIZES, "--dataloader-type", "single"]
    return [*found, {"tools/pretrain_gpt.py": said_by(lambda: complete_argv(needed))}]


def test_every_door_refuses_by_name_before_anything_is_built(pool: RankPool, tmp_path: Path) -> None:
    texts = ROOT / "examples" / "udhr"
    tags = "".join(
        f"  {tag}: {{train: [{texts}/train/{tag}.txt], valid: [{texts}/valid/{tag}.txt]}}\n"
        for tag in ("el", "ko")
    )
    (tmp_path / "languages.yaml").write_text(f"tokenizer: byte\nlanguages:\n{tags}", encoding="utf-8")
    (tmp_path / "tiny.yaml").write_text(TINY.format(languages="languages.yaml"), encoding="utf-8")
    *found, needed = pool.run(doors_worker, 1, tmp_path)[0]
    wrong = [
        f"{door} {' '.join(flags)}: {said}"
        for (flags, begins), by_door in zip(FIRST, found, strict=True)
        for door, said in by_door.items()
        if not said.startswith(begins)
    ]
    assert not wrong, "\n".join(wrong)
    assert needed["tools/pretrain_gpt.py"].startswith(
        "--dataloader-type external: dataloader_type is 'single'"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["languages.yaml", "tiny.yaml"]


def test_the_page_is_the_tables() -> None:
    assert PAGE.read_text(encoding="utf-8") == support.markdown()


def averaged_worker(rank: int, world: int, case: Case, wrapped_elsewhere: bool) -> tuple[str, bool]:
    """What is said of a model with an averaged parameter, and whether an optimizer was built for it by then."""
    from megatron.training import training

    from megatron_moo.buckets import seam
    from megatron_moo.models import gpt

    stock, get = gpt.build_model, training.get_megatron_optimizer
    built: list[bool] = []

    def carrying(*args: Any, **kw: Any) -> Any:
        model = stock(*args, **kw)
        model.decoder.final_layernorm.weight.average_gradients_across_tp_domain = True
        return model

    def counted(*args: Any, **kw: Any) -> Any:
        built.append(True)
        return get(*args, **kw)

    gpt.build_model, training.get_megatron_optimizer = carrying, counted
    if wrapped_elsewhere:
        seam._checked = lambda wrap: wrap  # type: ignore[assignment]
    try:
        train_steps(case)
    except MooError as error:
        return str(error), bool(built)
    return "trained", bool(built)


@pytest.mark.parametrize("wrapped_elsewhere", [False, True])
def test_a_model_that_carries_averaged_parameters(pool: RankPool, wrapped_elsewhere: bool) -> None:
    """Refused before an optimizer is built for it; one that a team wraps itself before its first step."""
    case = Case("two slots", slots=2)
    said, built = pool.run(averaged_worker, 1, case, wrapped_elsewhere)[0]
    assert said.startswith(
        "decoder.final_layernorm.weight: average_gradients_across_tp_domain does not work with MOO"
    )
    assert built == wrapped_elsewhere
