"""Recipes and flags: what wins, what is refused, and where the message points."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_moo.errors import MooError
from megatron_moo.training.recipe import Recipe, check_keys, load_recipe, parse_flags, to_argv


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_flags_win_over_the_recipe(tmp_path: Path) -> None:
    path = write(tmp_path, "num-layers: 4\nlr: 1.0e-3\nmoo_method: cagrad\nlanguages: data/languages.yaml\n")
    recipe = load_recipe(path, ["--moo-method", "mean", "--lr=2e-3", "--swiglu"])
    assert recipe.values["moo-method"] == "mean"
    assert recipe.values["lr"] == "2e-3"
    assert recipe.values["swiglu"] is True
    assert recipe.values["num-layers"] == 4
    assert recipe.values["languages"] == str(tmp_path / "data/languages.yaml")


def test_the_name_says_what_the_command_line_changed(tmp_path: Path) -> None:
    path = write(tmp_path, "num-layers: 4\n")
    assert load_recipe(path, []).name == "small"
    assert load_recipe(path, ["--nproc", "4"]).name == "small"
    assert load_recipe(path, ["--moo-method", "mean", "--moo-option", "a=1", "b=2"]).name == (
        "small-moo-method-mean-moo-option-a-1-b-2"
    )


def test_argv() -> None:
    values = {"a": 1, "b": True, "c": False, "d": None, "e": [1, 2], "nproc": 4, "moo-option": ["c=1", "d=2"]}
    assert to_argv(values) == [
        "--a",
        "1",
        "--b",
        "--e",
        "1",
        "2",
        "--moo-option",
        "c=1",
        "--moo-option",
        "d=2",
    ]


def test_parse_flags() -> None:
    assert parse_flags(["--a", "1", "2", "--b", "--c-d=3", "--e_f", "-1"]) == {
        "a": ["1", "2"], "b": True, "c-d": "3", "e-f": "-1",
    }  # fmt: skip
    with pytest.raises(MooError, match="'stray' belongs to no flag"):
        parse_flags(["stray"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1\nb: 2\n", r"small.yaml:2: not YAML"),
        ("- a\n- b\n", "small.yaml: not a mapping"),
        ("1: a\n", "small.yaml: not a mapping"),
    ],
)
def test_broken_recipes_name_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(MooError, match=message):
        load_recipe(write(tmp_path, text), [])


def test_missing_recipe(tmp_path: Path) -> None:
    with pytest.raises(MooError, match=r"none\.yaml: cannot be read"):
        load_recipe(tmp_path / "none.yaml", [])


def test_unknown_keys_name_the_nearest_flag() -> None:
    recipe = Recipe(Path("r.yaml"), {"num-layer": 4}, {})
    with pytest.raises(MooError, match=r"r.yaml: unknown flag 'num-layer'; did you mean 'num-layers'\?"):
        check_keys(recipe, ["num-layers", "lr"])
    recipe = Recipe(Path("r.yaml"), {"zzz": 4}, {"zzz": 4})
    with pytest.raises(MooError, match="command line: unknown flag 'zzz'"):
        check_keys(recipe, ["num-layers", "lr"])


def test_options_belong_to_the_method_that_the_recipe_names(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("moo-method: cagrad\nmoo-option: c=0.5\n")
    assert "moo-option" not in load_recipe(path, ["--moo-method", "mean"]).values
    assert load_recipe(path, ["--moo-method", "cagrad"]).values["moo-option"] == "c=0.5"
    assert load_recipe(path, ["--lr", "1e-3"]).values["moo-option"] == "c=0.5"
    given = load_recipe(path, ["--moo-method", "pcgrad", "--moo-option", "seed=3"])
    assert given.values["moo-option"] == "seed=3"


def test_a_flag_given_again_counts() -> None:
    assert parse_flags(["--lr", "1", "--train-iters", "5", "--lr", "2"]) == {"lr": "2", "train-iters": "5"}
    assert parse_flags(["--a", "1", "2", "--a", "3", "4"]) == {"a": ["3", "4"]}
    assert parse_flags(["--moo-option", "c=0.5", "--moo-option", "d=1"]) == {"moo-option": ["c=0.5", "d=1"]}
