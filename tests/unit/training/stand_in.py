"""Modules that stand in for Transformer Engine and Apex: every name is there, and every call is written down.

They compute nothing. What a test can show with them is which of their parts Megatron and this project reach for.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

# Modules that Megatron reaches by attribute, without an import of their own.
_MODULES = ("common", "recipe", "ops", "distributed", "pytorch")
_ANSWERS: dict[str, Any] = {"get_cpu_offload_context": lambda: (contextlib.nullcontext(), None)}
_VALUES = {"Format": SimpleNamespace(HYBRID="HYBRID", E4M3="E4M3")}
CALLS: list[tuple[str, dict[str, Any]]] = []


class StandIn(ModuleType):
    """A module in which every name is a class that records its construction, or a function that records calls."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        full = f"{self.__name__}.{name}"
        if name in _MODULES:
            return importlib.import_module(full)
        if name in _VALUES:
            return _VALUES[name]
        made = _recorded_class(full) if name.lstrip("_")[0].isupper() else _recorded_function(full)
        setattr(self, name, made)
        return made


def _recorded_class(full: str) -> type:
    def construct(self: Any, *args: Any, **kw: Any) -> None:
        CALLS.append((full, {**dict(enumerate(args)), **kw}))
        if isinstance(self, torch.optim.Optimizer):
            torch.optim.AdamW.__init__(self, args[0] if args else kw["params"], lr=kw["lr"])
            return
        torch.nn.Module.__init__(self)
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.te_return_bias = False

    base = torch.optim.AdamW if full.endswith("FusedAdam") else torch.nn.Module
    module, _, name = full.rpartition(".")
    return type(name, (base,), {"__init__": construct, "__module__": module})


def _recorded_function(full: str) -> Any:
    def call(*args: Any, **kw: Any) -> Any:
        CALLS.append((full, {**dict(enumerate(args)), **kw}))
        return _ANSWERS.get(call.__name__, contextlib.nullcontext)()

    call.__name__ = call.__qualname__ = full.rpartition(".")[2]
    return call


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the named packages and everything below them."""

    def __init__(self, names: Sequence[str], folders: dict[str, str], versions: dict[str, str]) -> None:
        self.names, self.folders, self.versions = names, folders, versions

    def find_spec(
        self, name: str, path: Any = None, target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name.split(".")[0] not in self.names:
            return None
        spec = importlib.machinery.ModuleSpec(name, self, is_package=True)
        spec.submodule_search_locations = [self.folders.get(name, "")]
        return spec

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = StandIn(spec.name)
        module.__version__ = self.versions.get(spec.name, "0")  # type: ignore[attr-defined]
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run: names appear when they are asked for."""


def plant(*names: str, folders: dict[str, str] | None = None, versions: dict[str, str] | None = None) -> None:
    """Let ``import NAME`` find a stand-in in this process."""
    sys.meta_path.insert(0, Finder(names, folders or {}, versions or {}))


def called(part: str) -> Iterator[dict[str, Any]]:
    """Arguments of the calls whose name ends with ``part``."""
    return (kw for name, kw in CALLS if name.endswith(part))
