"""YAML with line numbers: parse a file and remember where each key stands."""

from __future__ import annotations

import math
from pathlib import Path as FilePath
from typing import Any

import yaml

from megatron_moo.errors import MooError

Path = tuple[str | int, ...]
Lines = dict[Path, int]


def load_yaml_with_lines(path: FilePath) -> tuple[Any, Lines]:
    """Parse a YAML file into plain data and a map from key path to line number (from 1).

    Raises:
        MooError: unreadable file, a YAML mistake (with its line) or a key that occurs twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MooError(
            f"cannot be read ({error})", str(path), "check the path and that it is UTF-8"
        ) from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        lines: Lines = {(): 1}
        return (_convert(node, (), lines, path) if node is not None else None), lines
    except RecursionError:
        raise MooError("is nested without end", str(path), "repair it") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark is not None else ""
        raise MooError(
            f"is not YAML: {getattr(error, 'problem', error)}", f"{path}{line}", "repair it"
        ) from error


def line_of(lines: Lines, path: Path) -> int:
    """The line of a key path, or of its nearest parent that has one."""
    while path not in lines:
        path = path[:-1]
    return lines[path]


def _convert(node: yaml.Node, at: Path, lines: Lines, file: FilePath) -> Any:
    lines.setdefault(at, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            # Keys are read as written: the language tag `no` (Norwegian) is not the boolean False.
            key = str(key_node.value)
            line = key_node.start_mark.line + 1
            if key in result:
                first = lines[(*at, key)]
                raise MooError(
                    f"{key!r} stands twice (first on line {first})", f"{file}:{line}", "rename or remove one"
                )
            lines[(*at, key)] = line
            result[key] = _convert(value_node, (*at, key), lines, file)
        return result
    if isinstance(node, yaml.SequenceNode):
        return [_convert(child, (*at, i), lines, file) for i, child in enumerate(node.value)]
    return _scalar(node, file)


def _scalar(node: yaml.Node, file: FilePath) -> Any:
    where = f"{file}:{node.start_mark.line + 1}"
    loader = yaml.SafeLoader("")
    try:
        value = loader.construct_object(node, deep=True)
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        problem = getattr(error, "problem", None) or error
        raise MooError(f"{node.value!r} is not a value ({problem})", where, "repair or quote it") from error
    finally:
        loader.dispose()
    if isinstance(value, float) and not math.isfinite(value):
        raise MooError(f"{node.value!r} is not a finite number", where, "give a number")
    return value
