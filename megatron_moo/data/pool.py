"""Processes that encode blocks, in order and with a bounded number in flight."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from megatron_moo.data.encode import Encoded, Job, encode_with, run_job, start_worker
from megatron_moo.data.sources import Block
from megatron_moo.data.tokenizers import make_tokenizer
from megatron_moo.errors import MooError


class EncodePool:
    """``workers`` processes (1: this one) that share a tokenizer; results come in the order of the blocks.

    At most two blocks per worker are in flight, so memory does not grow with the input.
    """

    def __init__(self, spec: Mapping[str, Any], base: Path, workers: int) -> None:
        if workers < 1:
            raise MooError(f"{workers} workers", todo="use at least 1")
        refuse_reimport()
        self._spec, self._base, self._workers = dict(spec), base, workers
        self._executor: ProcessPoolExecutor | None = None
        self._tokenizer = make_tokenizer(spec, base) if workers == 1 else None

    def __enter__(self) -> EncodePool:
        if self._workers > 1:
            # Not fork: the parent may hold threads (torch, tokenizers), and a forked copy of their locks can
            # hang.
            context = multiprocessing.get_context("forkserver")
            self._executor = ProcessPoolExecutor(
                self._workers,
                mp_context=context,
                initializer=start_worker,
                initargs=(self._spec, str(self._base)),
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)

    def map(self, blocks: Iterable[Block], job: Job) -> Iterator[tuple[Block, Encoded]]:
        """(block, encoded) in order."""
        if self._executor is None:
            assert self._tokenizer is not None
            for block in blocks:
                yield block, encode_with(block, job, self._tokenizer)
            return
        waiting: deque[tuple[Block, Future[Encoded]]] = deque()
        try:
            for block in blocks:
                waiting.append((block, self._executor.submit(run_job, block, job)))
                if len(waiting) >= 2 * self._workers:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        except BrokenProcessPool as error:
            raise MooError(
                "a worker process died (out of memory?)",
                "data build",
                "use fewer workers, or read the lines above",
            ) from error


def refuse_reimport() -> None:
    """Refuse to build while a worker imports the caller's script.

    A script without ``if __name__ == "__main__"`` runs again in each worker; it would wait for the lock that
    its own parent
    holds, for ever.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        what = "the build was started again by a worker that imported the script"
        raise MooError(what, "build_corpus", 'put the call under `if __name__ == "__main__":`')
