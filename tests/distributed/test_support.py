"""Every row of the support table is refused, or warned of, by name."""

from __future__ import annotations

import contextlib
import io

import pytest

from megatron_moo.errors import MooError
from megatron_moo.training.support import TABLE, Row, check_supported
from tests.pool import RankPool


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
