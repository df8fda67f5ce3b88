"""A step's batches and random states, so that a slot's pass can be run again and give the same gradient."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch


class Replay:
    """The micro-batches of a step, drawn at once, and the random state in which each slot began.

    Args:
        data: Megatron's data iterator, or one for each virtual pipeline chunk.
        slots: S.
        micro_batches: per slot.
    """

    def __init__(self, data: Any, slots: int, micro_batches: int) -> None:
        self._several = isinstance(data, list)
        self._micro_batches = micro_batches
        self.drawn: list[list[Any]] = [
            [next(iterator) for _ in range(slots * micro_batches)]
            for iterator in (data if self._several else [data])
        ]
        self._states: dict[int, dict[str, Any]] = {}
        self._after: dict[str, Any] | None = None

    def begin_pass(self, slot: int, first: bool) -> Iterator[Any] | list[Iterator[Any]]:
        """What Megatron draws from in a pass over ``slot``; a repeated one starts in its first one's random state."""
        if first:
            self._states[slot] = _random_state()
        else:
            if self._after is None:
                self._after = _random_state()
            _set_random_state(self._states[slot])
        start = slot * self._micro_batches
        cut = [iter(batches[start : start + self._micro_batches]) for batches in self.drawn]
        return cut if self._several else cut[0]

    def end(self) -> None:
        """Leave the random state where a step without repeated passes leaves it."""
        if self._after is not None:
            _set_random_state(self._after)


def _random_state() -> dict[str, Any]:
    from megatron.core.tensor_parallel import get_cuda_rng_tracker

    tracker = get_cuda_rng_tracker().get_states()
    return {
        "cpu": torch.get_rng_state(),
        "device": torch.cuda.get_rng_state(),
        "tracker": {
            name: state.clone() if isinstance(state, torch.Tensor) else state
            for name, state in tracker.items()
        },
    }


def _set_random_state(state: dict[str, Any]) -> None:
    from megatron.core.tensor_parallel import get_cuda_rng_tracker

    torch.set_rng_state(state["cpu"])
    torch.cuda.set_rng_state(state["device"])
    get_cuda_rng_tracker().set_states(dict(state["tracker"]))
