"""The pool itself: order, errors, hangs, and that nothing outlives its run."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.pool import RankError, RankPool, RankTimeout

_ROOT = Path(__file__).resolve().parents[2]
_COUNTER = {"calls": 0}


def _sum_of_ranks(
    rank: int, world_size: int, scale: float, *, offset: float = 0.0
) -> tuple[int, torch.Tensor]:
    value = torch.full((3,), scale * rank + offset)
    dist.all_reduce(value)
    return rank, value


def _threads_and_seed(rank: int, world_size: int) -> tuple[int, float]:
    return torch.get_num_threads(), torch.rand(()).item()


def _count_calls(rank: int, world_size: int) -> int:
    _COUNTER["calls"] += 1
    return _COUNTER["calls"]


def _one_rank_raises(rank: int, world_size: int, bad: int) -> None:
    if rank == bad:
        raise ZeroDivisionError(f"planted in rank {rank}")
    dist.barrier()


def _one_rank_dies(rank: int, world_size: int, bad: int) -> None:
    if rank == bad:
        os.kill(os.getpid(), signal.SIGSEGV)
    dist.barrier()


def _one_rank_sleeps(rank: int, world_size: int, bad: int) -> int:
    if rank == bad:
        time.sleep(600)
    return rank


def _return_lambda(rank: int, world_size: int) -> Any:
    return lambda: rank


def _megatron_groups(rank: int, world_size: int) -> tuple[int, int, bool]:
    from megatron.core import parallel_state, tensor_parallel

    before = parallel_state.is_initialized()
    parallel_state.initialize_model_parallel(tensor_model_parallel_size=2)
    tensor_parallel.model_parallel_cuda_manual_seed(7)
    return (
        parallel_state.get_tensor_model_parallel_rank(),
        parallel_state.get_data_parallel_world_size(),
        before,
    )


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_results_come_in_rank_order(pool: RankPool, world_size: int) -> None:
    results = pool.run(_sum_of_ranks, world_size, 2.0, offset=1.0)

    assert [rank for rank, _ in results] == list(range(world_size))
    expected = 2.0 * sum(range(world_size)) + world_size
    for _, value in results:
        torch.testing.assert_close(value, torch.full((3,), expected), rtol=0, atol=0)


def test_every_rank_has_one_thread_and_the_same_seed(pool: RankPool) -> None:
    results = pool.run(_threads_and_seed, 2)

    assert [threads for threads, _ in results] == [1, 1]
    assert results[0][1] == results[1][1]


def test_a_run_sees_nothing_of_the_run_before(pool: RankPool) -> None:
    assert pool.run(_count_calls, 2) == [1, 1]
    assert pool.run(_count_calls, 2) == [1, 1]


def test_megatron_groups_are_fresh_in_each_run(pool: RankPool) -> None:
    expected = [(0, 2, False), (1, 2, False), (0, 2, False), (1, 2, False)]
    assert pool.run(_megatron_groups, 4) == expected
    assert pool.run(_megatron_groups, 4) == expected


def test_an_exception_comes_back_with_its_rank(pool: RankPool) -> None:
    started = time.monotonic()
    with pytest.raises(RankError) as caught:
        pool.run(_one_rank_raises, 2, 1)

    assert next(iter(caught.value.errors)) == 1
    assert "in _one_rank_raises" in caught.value.errors[1]
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert time.monotonic() - started < 30, "the peers of a failed rank were waited for"


def test_a_rank_that_dies_is_named(pool: RankPool) -> None:
    with pytest.raises(RankError) as caught:
        pool.run(_one_rank_dies, 2, 0)

    assert "Segmentation fault" in caught.value.errors[0]


def test_a_hang_names_its_ranks_and_places_and_the_next_run_works(pool: RankPool) -> None:
    with pytest.raises(RankTimeout) as caught:
        pool.run(_one_rank_sleeps, 4, 2, timeout=5)

    assert caught.value.ranks == [2]
    assert "in _one_rank_sleeps" in str(caught.value)
    assert pool.run(_one_rank_sleeps, 4, -1) == [0, 1, 2, 3]


def test_a_result_that_cannot_travel_is_an_error(pool: RankPool) -> None:
    with pytest.raises(RankError, match="cannot be pickled"):
        pool.run(_return_lambda, 1)


def test_a_function_without_a_name_is_refused(pool: RankPool) -> None:
    with pytest.raises(ValueError, match="top level"):
        pool.run(lambda rank, world_size: rank, 1)


def _leave_a_manager(rank: int, world_size: int) -> int:
    """What Megatron's checkpoints do: a queue in a process of its own, never shut down."""
    manager = multiprocessing.get_context("spawn").Manager()
    [server] = multiprocessing.active_children()
    globals()["_KEPT"] = manager
    assert server.pid is not None
    return server.pid


def test_what_a_rank_started_ends_with_it(pool: RankPool) -> None:
    pids = pool.run(_leave_a_manager, 2)
    assert _wait_for(lambda: not any(map(_alive, pids)), 10), "a rank's child outlived its run"


@pytest.mark.parametrize("world_size", [0, 9])
def test_sizes_out_of_range_are_refused(pool: RankPool, world_size: int) -> None:
    with pytest.raises(ValueError, match="1 to 8"):
        pool.run(_count_calls, world_size)


_OWNER = """
import sys
from tests.pool import RankPool
from tests.pool.test_pool import _announce_and_sleep
RankPool().run(_announce_and_sleep, 2, sys.argv[1])
"""


def _announce_and_sleep(rank: int, world_size: int, folder: str) -> None:
    Path(folder, f"{rank}.part").write_text(f"{os.getpid()} {os.getppid()}")
    Path(folder, f"{rank}.part").rename(Path(folder, f"{rank}.pid"))
    time.sleep(600)


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def _wait_for(condition: Any, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


def test_ranks_and_template_die_with_the_tests_process(tmp_path: Path) -> None:
    owner = subprocess.Popen([sys.executable, "-c", _OWNER, str(tmp_path)], cwd=_ROOT)
    try:
        assert _wait_for(lambda: len(list(tmp_path.glob("*.pid"))) == 2, 200), "the ranks did not start"
        pids = {int(pid) for file in tmp_path.glob("*.pid") for pid in file.read_text().split()}
        assert len(pids) == 3 and all(map(_alive, pids))
    finally:
        owner.kill()
        owner.wait()

    assert _wait_for(lambda: not any(map(_alive, pids)), 10), "processes outlived their tests process"
