"""Sizes that no model can have are refused before a rank starts, with the flag's name."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_moo.errors import MooError
from tests.unit.training.test_plan import _plan


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--num-layers", "0"), "--num-layers: is 0, a whole number from 1 was expected; give a positive one"),
        (("--hidden-size", "33"), "--num-attention-heads: 2 heads do not divide hidden-size 33; "),
        (("--recompute-granularity", "full"), "--recompute-granularity: full recomputation needs recompute-method"),
        (("--use-distributed-optimizer", "false"), "command line: use-distributed-optimizer is 'false', MOO needs"),
    ],
)  # fmt: skip
@pytest.mark.timeout(60)
def test_train_names_the_flag(tmp_path: Path, flags: tuple[str, ...], message: str) -> None:
    with pytest.raises(MooError) as caught:
        _plan(tmp_path, "el ko", "--nproc", "2", *flags)
    assert str(caught.value).startswith(message)
    assert not (tmp_path / "run").exists()
