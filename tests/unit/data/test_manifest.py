"""languages.yaml: what is refused, and where the error points."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_moo.data import load_manifest
from megatron_moo.errors import MooError

GOOD = """tokenizer: byte
languages:
  en: {train: [en.txt], valid: [en.txt]}
  de:
    train: [de.txt]
    objective: germanic
    weight: 2
    preference: 3
  nl: {train: [de.txt], objective: germanic}
unseen:
  fr: {valid: [fr.txt]}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for tag in ("en", "de", "fr"):
        (tmp_path / f"{tag}.txt").write_text(f"text of {tag}\n")
    return tmp_path


def _load(folder: Path, text: str):  # type: ignore[no-untyped-def] # noqa: ANN202
    path = folder / "languages.yaml"
    path.write_text(text)
    return load_manifest(path)


def test_a_good_one(folder: Path) -> None:
    manifest = _load(folder, GOOD)
    assert manifest.objectives == ("en", "germanic")
    assert manifest.objective_of == {"en": 0, "de": 1, "nl": 1}
    assert manifest.languages["de"].weight == 2
    assert manifest.preference() == pytest.approx((1 / 3, 2 / 3))
    assert list(manifest.unseen) == ["fr"]
    assert manifest.languages["en"].train == (folder / "en.txt",)
    with pytest.raises(MooError, match=r"no language 'xx'.*choose one of en, de, nl, fr"):
        manifest.language("xx")


def test_norwegian_is_a_language_and_not_false(folder: Path) -> None:
    assert "no" in _load(folder, "tokenizer: byte\nlanguages:\n  no: {train: [en.txt]}\n").languages


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("en.txt], valid", "missing.txt], valid", 3, r"en: no such file .*missing\.txt"),
        ("weight: 2", "weigth: 2", 7, "unknown key 'weigth'"),
        ("weight: 2", "weight: -2", 7, "languages.de.weight: -2"),
        ("weight: 2", "weight: much", 7, "'much' is not of type 'number'"),
        ("  nl:", "  de:", 9, "'de' stands twice"),
        ("  nl:", "  DE:", 9, "'DE' and 'de' are the same language"),
        ("  fr:", "  deu:", 11, "'deu' and 'de' are the same language"),
        ("  nl:", "  klingonisch:", 9, "'klingonisch' is no BCP-47"),
        ("  nl:", "  qq:", 9, "'qq' is no BCP-47"),
        ("tokenizer: byte", "tokenizer: bytes", 1, "tokenizer"),
        ("tokenizer: byte", "tokenizer: {type: hf, path: nowhere}", 1, "no tokenizer at"),
        (
            "tokenizer: byte",
            "tokenizer: byte\nsampling: {law: uniform, temperature: 3}",
            2,
            "takes no 'temperature'",
        ),
        ("    train: [de.txt]", "    train: []", 5, "non-empty|too short"),
        ("    train: [de.txt]", "    train: [de.txt, de.txt]", 5, "listed twice"),
        ("    train: [de.txt]", "    train: ['x*.txt']", 5, "no file matches"),
        ("  de:\n", "  de: ]\n", 4, "is not YAML"),
    ],
)
def test_mistakes_are_named_with_their_line(folder: Path, old: str, new: str, line: int, words: str) -> None:
    assert old in GOOD
    with pytest.raises(MooError, match=words) as caught:
        _load(folder, GOOD.replace(old, new, 1))
    assert f"languages.yaml:{line}: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nothing_and_no_file(folder: Path) -> None:
    with pytest.raises(MooError, match="not of type 'object'"):
        _load(folder, "")
    with pytest.raises(MooError, match="cannot be read"):
        load_manifest(folder / "none.yaml")


def test_the_bundled_one_has_14_and_6_languages_with_the_same_articles() -> None:
    root = Path(__file__).resolve().parents[3] / "examples" / "udhr"
    manifest = load_manifest(root / "languages.yaml")
    assert (len(manifest.languages), len(manifest.unseen)) == (14, 6)
    for language in [*manifest.languages.values(), *manifest.unseen.values()]:
        assert len(language.valid[0].read_text(encoding="utf-8").strip().split("\n\n")) == 5
    for language in manifest.languages.values():
        assert len(language.train[0].read_text(encoding="utf-8").strip().split("\n\n")) == 26


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("byte", "!foo bar", r"languages\.yaml:1: .*is not a value"),
        ("weight: 2", "weight: 2024-13-45", r":7: .*is not a value"),
        ("weight: 2", "weight: !!int abc", r":7: .*is not a value"),
        ("weight: 2", "weight: .nan", r":7: .*not a finite number"),
        ("preference: 3", "preference: .inf", r":8: .*not a finite number"),
        ("weight: 2", "weight: &a [*a]", "nested without end"),
        ("weight: 2", "weight: " + "[" * 5000, "nested without end"),
        ("[en.txt], valid", "[~nobody-of-that-name/x], valid", r":3: en: .*no usable path|no such file"),
        ("[en.txt], valid", "[" + "x" * 5000 + "], valid", r":3: en: .*no usable path"),
    ],
)  # fmt: skip
def test_what_yaml_lets_through_is_one_error_with_its_line(
    folder: Path, old: str, new: str, words: str
) -> None:
    with pytest.raises(MooError, match=words):
        _load(folder, GOOD.replace(old, new, 1))


def test_what_is_not_validated_or_validated_on_trained_text_is_noted(folder: Path) -> None:
    from megatron_moo.data.manifest import manifest_notes

    assert manifest_notes(_load(folder, GOOD)) == [
        "without `valid`, not validated: de, nl",
        "validated on text that is trained on: en",
    ]
    clean = GOOD.replace("valid: [en.txt]", "valid: [fr.txt]").replace(
        "fr: {valid: [fr.txt]", "fr: {valid: [./de.txt]"
    )
    assert manifest_notes(_load(folder, clean))[1:] == ["validated on text that is trained on: fr"]
    alone = "tokenizer: byte\nlanguages:\n  en: {train: [en.txt], valid: [fr.txt]}\n"
    assert manifest_notes(_load(folder, alone)) == []
