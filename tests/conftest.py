"""Fixtures and rules for every test: the rank pool, and GPU tests that say why they were skipped."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pool import RankPool

_GPU_TESTS = Path(__file__).parent / "gpu"
_NO_GPU = "needs a CUDA GPU; this machine has none"


@pytest.fixture(scope="session")
def pool() -> Iterator[RankPool]:
    """Gloo ranks for the whole session: ``pool.run(fn, world_size, *args, timeout=60)``."""
    ranks = RankPool()
    yield ranks
    ranks.close()


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark everything under tests/gpu, and skip it with a reason where there is no GPU."""
    for item in items:
        if _GPU_TESTS in item.path.parents:
            item.add_marker(pytest.mark.gpu)
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if on_gpu and not _has_cuda():
        for item in on_gpu:
            item.add_marker(pytest.mark.skip(reason=_NO_GPU))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say plainly how many GPU tests did not run."""
    skipped = [report for report in terminalreporter.stats.get("skipped", []) if "gpu" in report.keywords]
    if skipped:
        terminalreporter.write_line(f"GPU tests: {len(skipped)} skipped, {_NO_GPU}")
