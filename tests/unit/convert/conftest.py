"""A checkpoint of Megatron's made from the tiny Llama."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_moo.convert.importer import import_checkpoint
from tests.unit.convert import tiny


@pytest.fixture
def imported(tmp_path: Path) -> Path:
    """``megatron``, imported from ``hf``, both in this test's folder."""
    import_checkpoint(tiny.write(tmp_path / "hf"), tmp_path / "megatron")
    return tmp_path / "megatron"
