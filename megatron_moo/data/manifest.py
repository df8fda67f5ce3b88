"""``languages.yaml``: which languages, from which sources, sampled and favoured how.

The manifest is read once into frozen dataclasses; everything that a user can get wrong in it is refused here,
with the file and the line.
"""

from __future__ import annotations

import glob
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_moo.data.schema import MANIFEST
from megatron_moo.data.yaml_lines import Lines, line_of, load_yaml_with_lines
from megatron_moo.errors import MooError


@dataclass(frozen=True)
class Reading:
    """How the documents of a language's sources are found.

    Attributes:
        text_key: column or JSON key that holds the text.
        documents: what one document of a plain text file is: ``paragraph`` (blank lines separate), ``line``,
            ``file``.
        skip_budget: bad records that may be skipped per language and split before the build refuses.
        max_line_bytes: longest record that is held in memory; a longer one counts as bad.
        split: the split of a Hugging Face dataset folder that has several.
    """

    text_key: str = "text"
    documents: str = "paragraph"
    skip_budget: int = 0
    max_line_bytes: int = 16 * 2**20
    split: str | None = None


@dataclass(frozen=True)
class SamplingSpec:
    """The sampling law: ``uniform``, ``proportional``, ``temperature``, ``unimax`` or ``fixed``.

    Attributes:
        temperature: T of ``temperature``; shares follow tokens ** (1/T).
        epochs: UniMax's cap, passes over one language.
        budget: UniMax's training tokens; None: the trainer supplies the run's own.
    """

    law: str = "uniform"
    temperature: float = 3.0
    epochs: float = 4.0
    budget: int | None = None


@dataclass(frozen=True)
class SftSpec:
    """Supervised fine-tuning: how conversations become tokens with a loss mask.

    Attributes:
        template: name of a template, a file, or ``tokenizer`` (the HF tokenizer's own).
        system: system prompt for conversations that have none.
        max_length: tokens of a conversation after which the truncation policy applies.
        truncation: ``drop``, ``right``, ``turns`` (oldest turns first) or ``error``.
        pack: whether several conversations share one sample.
    """

    max_length: int
    template: str = "chatml"
    system: str | None = None
    truncation: str = "turns"
    pack: bool = True


@dataclass(frozen=True)
class Language:
    """One language (or domain): tag, sources and how it takes part.

    ``weight`` says how often it is drawn, ``preference`` how much its objective is favoured by MOO.
    """

    tag: str
    train: tuple[Path, ...]
    valid: tuple[Path, ...]
    objective: str
    weight: float = 1.0
    preference: float = 1.0
    reading: Reading = field(default_factory=Reading)
    template: str | None = None
    system: str | None = None


@dataclass(frozen=True)
class Manifest:
    """A checked manifest. ``objectives`` are in the order of first appearance."""

    path: Path
    tokenizer: Mapping[str, Any]
    sampling: SamplingSpec
    languages: Mapping[str, Language]
    unseen: Mapping[str, Language]
    sft: SftSpec | None = None

    @property
    def objectives(self) -> tuple[str, ...]:
        """Names of the objectives, in the order in which the languages name them first."""
        return tuple(dict.fromkeys(language.objective for language in self.languages.values()))

    @property
    def objective_of(self) -> dict[str, int]:
        """The index into ``objectives`` of each training language."""
        index = {name: i for i, name in enumerate(self.objectives)}
        return {tag: index[language.objective] for tag, language in self.languages.items()}

    def preference(self) -> tuple[float, ...]:
        """MOO preference per objective, sums to 1: the mean of its languages' preferences, normalised."""
        sums: dict[str, list[float]] = {}
        for language in self.languages.values():
            sums.setdefault(language.objective, []).append(language.preference)
        means = [sum(values) / len(values) for values in sums.values()]
        return tuple(value / sum(means) for value in means)

    def language(self, tag: str) -> Language:
        """The language of a tag, seen or unseen; MooError when there is none."""
        found = self.languages.get(tag) or self.unseen.get(tag)
        if found is None:
            known = ", ".join([*self.languages, *self.unseen])
            raise MooError(f"no language {tag!r}", str(self.path), f"choose one of {known}")
        return found


def manifest_notes(manifest: Manifest) -> list[str]:
    """Warnings about validation: languages that have none, and those whose text is trained on too."""
    seen = manifest.languages.values()
    silent = [language.tag for language in seen if not language.valid]
    every = [*seen, *manifest.unseen.values()]
    trained = {path.resolve() for language in seen for path in language.train}
    leaky = [one.tag for one in every if any(path.resolve() in trained for path in one.valid)]
    notes = [f"without `valid`, not validated: {', '.join(silent)}"] if silent else []
    return notes + ([f"validated on text that is trained on: {', '.join(leaky)}"] if leaky else [])


def load_manifest(path: str | Path) -> Manifest:
    """Read and check a manifest.

    Args:
        path: the YAML file; sources in it are relative to its folder and may contain ``*``.

    Raises:
        MooError: with file and line, for every mistake that can be seen without reading the sources.
    """
    file = Path(path)
    data, lines = load_yaml_with_lines(file)
    _check_schema(data, lines, file)
    reader = _Reader(file, lines, data.get("reading", {}))
    languages = {tag: reader.language("languages", tag, spec) for tag, spec in data["languages"].items()}
    unseen = {tag: reader.language("unseen", tag, spec) for tag, spec in (data.get("unseen") or {}).items()}
    _check_names([*(("languages", t) for t in languages), *(("unseen", t) for t in unseen)], lines, file)
    return Manifest(
        path=file,
        tokenizer=_tokenizer(data["tokenizer"], file, lines),
        sampling=_sampling(data.get("sampling", "uniform"), file, lines),
        languages=languages,
        unseen=unseen,
        sft=SftSpec(**data["sft"]) if "sft" in data else None,
    )


def _check_schema(data: Any, lines: Lines, file: Path) -> None:
    import jsonschema

    errors = list(jsonschema.Draft202012Validator(MANIFEST).iter_errors(data))
    if not errors:
        return
    error = jsonschema.exceptions.best_match(errors)
    at = tuple(error.absolute_path)
    # An unknown key is reported on its own line, not on its parent's.
    if error.validator == "additionalProperties" and isinstance(error.instance, dict):
        unknown = [k for k in error.instance if k not in error.schema.get("properties", {})]
        known = ", ".join(error.schema.get("properties", {}))
        at = (*at, unknown[0])
        what, todo = f"unknown key {unknown[0]!r}", f"known keys: {known}"
    else:
        what, todo = f"{'.'.join(map(str, at)) or 'manifest'}: {error.message[:300]}", "see docs/data.md"
    raise MooError(what, f"{file}:{line_of(lines, at)}", todo)


def _check_names(keys: list[tuple[str, str]], lines: Lines, file: Path) -> None:
    from langcodes import standardize_tag, tag_is_valid

    seen: dict[str, str] = {}
    for key in keys:
        tag, where = key[1], f"{file}:{line_of(lines, key)}"
        if not tag_is_valid(tag):
            raise MooError(
                f"{tag!r} is no BCP-47 language tag",
                where,
                "use a registered tag (de, zh-Hans) or a private one (x-name)",
            )
        name = standardize_tag(tag)
        if name in seen:
            raise MooError(
                f"{tag!r} and {seen[name]!r} are the same language", where, "merge them or rename one"
            )
        seen[name] = tag


@dataclass
class _Reader:
    file: Path
    lines: Lines
    reading: dict[str, Any]

    def language(self, section: str, tag: str, spec: dict[str, Any]) -> Language:
        at = (section, tag)
        return Language(
            tag=tag,
            train=self._sources((*at, "train"), spec.get("train", [])),
            valid=self._sources((*at, "valid"), spec.get("valid", [])),
            objective=spec.get("objective", tag),
            weight=float(spec.get("weight", 1.0)),
            preference=float(spec.get("preference", 1.0)),
            reading=Reading(**{**self.reading, **spec.get("reading", {})}),
            template=spec.get("template"),
            system=spec.get("system"),
        )

    def _sources(self, at: tuple[str, str, str], names: list[str]) -> tuple[Path, ...]:
        found: list[Path] = []
        for i, name in enumerate(names):
            where = f"{self.file}:{line_of(self.lines, (*at, i))}"
            found.extend(self._expand(name, where, at[1]))
        if len(set(found)) != len(found):
            twice = next(p for p in found if found.count(p) > 1)
            raise MooError(
                f"{at[1]}: source {twice.name} is listed twice", f"{self.file}:{line_of(self.lines, at)}"
            )
        return tuple(found)

    def _expand(self, name: str, where: str, tag: str) -> list[Path]:
        try:
            return self._found(name, where, tag)
        except (OSError, RuntimeError, ValueError) as error:  # a name too long, an unknown ~user, a NUL
            raise MooError(
                f"{tag}: {name[:80]!r} is no usable path ({error.__class__.__name__})",
                where,
                "check the path",
            ) from error

    def _found(self, name: str, where: str, tag: str) -> list[Path]:
        path = self.file.parent / Path(name).expanduser()
        if glob.has_magic(name):
            matches = [Path(p) for p in sorted(glob.glob(str(path)))]
            if not matches:
                raise MooError(f"{tag}: no file matches {name}", where, "check the pattern")
            return matches
        if path.exists() or Path(f"{path}.idx").exists() or Path(f"{path}.bin").exists():
            return [path]
        raise MooError(f"{tag}: no such file {path}", where, "check the path (relative to the manifest)")


def _tokenizer(spec: Any, file: Path, lines: Lines) -> dict[str, Any]:
    result = {"type": spec} if isinstance(spec, str) else dict(spec)
    for key in ("model", "path"):
        if key in result:
            target = file.parent / Path(result[key]).expanduser()
            if not target.exists():
                where = f"{file}:{line_of(lines, ('tokenizer', key))}"
                raise MooError(
                    f"no tokenizer at {target}", where, "check the path (relative to the manifest)"
                )
            result[key] = str(target)
    return result


def _sampling(spec: Any, file: Path, lines: Lines) -> SamplingSpec:
    result = SamplingSpec(law=spec) if isinstance(spec, str) else SamplingSpec(**spec)
    used = {"temperature": {"temperature"}, "unimax": {"epochs", "budget"}}.get(result.law, set())
    given = set(spec) - {"law"} if isinstance(spec, dict) else set()
    if given - used:
        extra = sorted(given - used)[0]
        where = f"{file}:{line_of(lines, ('sampling', extra))}"
        raise MooError(f"law {result.law!r} takes no {extra!r}", where, "remove it or choose another law")
    return result
