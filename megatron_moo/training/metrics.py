"""metrics.jsonl and tensorboard: one line a step, written by the first rank (the last one writes tensorboard)."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron_moo.buckets.doing import DOING
from megatron_moo.buckets.step import MooStep, Resolved
from megatron_moo.training.evidence import moo_record
from megatron_moo.training.mixed import MixedStep
from megatron_moo.training.spikes import SpikeWatch


class LossBook:
    """Sums of losses and tokens per language, ``[languages, 2]`` fp64.

    Only ranks of the last pipeline stage with tensor-parallel rank 0 hold anything; a sum over all ranks is the
    whole batch.
    """

    def __init__(self, languages: int) -> None:
        self._languages = languages
        self._sums: torch.Tensor | None = None

    def add(self, language: int | torch.Tensor, loss: torch.Tensor, tokens: torch.Tensor) -> None:
        """Add a micro-batch's summed loss and number of tokens; or, with ``language`` ``[b]``, those of its rows."""
        if self._sums is None:
            self._sums = torch.zeros(self._languages, 2, dtype=torch.float64, device=loss.device)
        sums = torch.stack([loss, tokens], -1).double()
        if isinstance(language, torch.Tensor):
            self._sums.index_add_(0, language, sums)
        else:
            self._sums[language] += sums

    def take(self, device: torch.device) -> torch.Tensor:
        """The sums since the last call; starts again from zero."""
        sums, self._sums = self._sums, None
        return torch.zeros(self._languages, 2, dtype=torch.float64, device=device) if sums is None else sums


class MetricsWriter:
    """Turns a resolved step and Megatron's own log into one record.

    Args:
        run_dir: run folder.
        step: source of the resolved steps.
        languages: tags in the order of the loss book.
    """

    def __init__(self, run_dir: Path, step: MooStep, languages: Sequence[str]) -> None:
        self.path = run_dir / "metrics.jsonl"
        self.step, self.languages = step, tuple(languages)
        self.book = LossBook(len(languages))
        self.drawn: dict[str, int] = {}
        self._began = self._ended_at = 0.0
        self.spikes = SpikeWatch()
        step.riders.append(self._take_losses)
        step.on_begin.append(self._begin)
        step.on_end.append(self._ended)

    def _take_losses(self) -> torch.Tensor:
        DOING.enter("all-reduce of the Gramians")  # which these losses ride in
        return self.book.take(self.step.plans[0].grad.device)

    def _begin(self, number: int) -> None:
        self._began = time.perf_counter()

    def _ended(self) -> None:
        self._ended_at = time.perf_counter()

    def event(self, name: str, **fields: Any) -> None:
        """Write a line that is not a step."""
        if dist.get_rank() == 0:
            self._append({"event": name, "time": time.time(), **fields})

    def warn(self, step: int, text: str) -> None:
        """Say something on stderr, and in the metrics, from where the launcher shows it."""
        sys.stderr.write(f"megatron-moo: warning: step {step}: {text}\n")
        self.event("warning", step=step, text=text)

    def tell_drawn(self, step: int, report: dict[str, Any]) -> None:
        """Write asked against drawn (``Feed.report``) as an event ``drawn``."""
        self.event("drawn", step=step, **report)
        languages = report["languages"].items()
        self.scalars(
            {
                f"share_{name}/{tag}": told[name]
                for tag, told in languages
                for name in ("asked", "expected", "drawn")
            },
            step,
        )

    def scalars(self, values: Mapping[str, float | None], step: int) -> None:
        """Write numbers to tensorboard on the rank that has one; None is left out."""
        if (writer := _tensorboard()) is not None:
            _write_scalars(writer, values, step)

    def log_step(
        self,
        iteration: int,
        learning_rate: float,
        grad_norm: Any,
        skipped: bool,
        bytes_sent: int,
        bytes_between_nodes: int,
    ) -> None:
        """Write the record of the step that just ended (called after Megatron's own log).

        ``bytes_sent`` are this rank's of gradients, in all passes of the step; ``bytes_between_nodes`` of them left its
        node.
        """
        resolved = self.step.last
        if resolved is None:
            return
        sums = resolved.riders[0].tolist()
        seen = [(tag, *pair) for tag, pair in zip(self.languages, sums, strict=True) if pair[1] > 0]
        # On every rank: a checkpoint keeps what was seen, and what it keeps in common is equal on all.
        spikes = self.spikes.look({tag: loss / tokens for tag, loss, tokens in seen})
        if dist.get_rank() not in (0, dist.get_world_size() - 1):
            return
        now = time.perf_counter()
        record = self._record(resolved, seen, iteration, now)
        record |= {"lr": learning_rate, "grad_norm": _float(grad_norm), "skipped": skipped}
        record |= {"bytes_sent": bytes_sent, "bytes_between_nodes": bytes_between_nodes}
        record["spikes"] = {tag: _number(times) for tag, times in spikes.items()}
        if dist.get_rank() == 0:
            self._append(record)
            for text in _warnings(record):
                self.warn(iteration, text)
        if (writer := _tensorboard()) is not None:
            _to_tensorboard(writer, record, iteration)

    def _record(
        self, resolved: Resolved, seen: Sequence[tuple[str, float, float]], iteration: int, now: float
    ) -> dict[str, Any]:
        """A step's record; ``seen`` are summed loss and tokens of the languages in it."""
        total = now - self._began
        phase = dict(resolved.phase_s)
        phase["optimizer"] = now - self._ended_at
        waited = sum(seconds for name, seconds in phase.items() if name != "hidden")
        phase = {"compute": max(0.0, total - waited), **phase}
        return {
            "step": iteration,
            "objectives": list(self.step.objectives),
            "loss": {tag: loss / tokens for tag, loss, tokens in seen},
            "tokens": {tag: int(tokens) for tag, _, tokens in seen},
            "samples": dict(self.drawn),
            "step_time_s": total,
            "tokens_per_s": sum(int(tokens) for _, _, tokens in seen) / total,
            "phase_s": {name: round(seconds, 6) for name, seconds in phase.items()},
            "moo": self._moo(resolved),
        }

    def _moo(self, resolved: Resolved) -> dict[str, Any]:
        if isinstance(self.step, MixedStep):
            return {"method": "mean, languages mixed inside micro-batches"}
        config, step = self.step.config, self.step
        return moo_record(resolved, config.method, config.block, step.block_names, step.objectives)

    def _append(self, record: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as out:
            out.write(json.dumps(record, ensure_ascii=False) + "\n")


def _warnings(record: dict[str, Any]) -> list[str]:
    """What a step's record says of languages that went wrong."""
    told = [
        f"the loss of {tag}, {record['loss'][tag]:.4g}, is {times:.3g} times what it was lately"
        for tag, times in record["spikes"].items()
    ]
    if bad := record["moo"].get("dropped"):
        told.append(f"the gradient of {', '.join(bad)} is not finite and was left out")
    return told


def _number(value: float) -> float:
    return float(f"{min(value, 1e30):.6g}")  # JSON has no infinity


def _float(value: Any) -> float | None:
    return None if value is None else float(value)


def _tensorboard() -> Any:
    from megatron.training import get_tensorboard_writer

    return get_tensorboard_writer()


def _to_tensorboard(writer: Any, record: dict[str, Any], step: int) -> None:
    scalars = {f"loss/{tag}": loss for tag, loss in record["loss"].items()}
    scalars |= {f"tokens/{tag}": count for tag, count in record["tokens"].items()}
    scalars |= {f"phase_s/{name}": seconds for name, seconds in record["phase_s"].items()}
    scalars |= {f"samples/{tag}": count for tag, count in record["samples"].items()}
    scalars |= {name: record[name] for name in ("step_time_s", "tokens_per_s")}
    _write_scalars(writer, {**scalars, **_moo_scalars(record["moo"], record["objectives"])}, step)


def _moo_scalars(moo: dict[str, Any], objectives: Sequence[str]) -> dict[str, float | None]:
    scalars = {f"moo/{name}": moo.get(name) for name in ("conflict_rate", "cosine_same")}
    for part in ("stationarity", "conflict", "norm"):
        scalars |= {f"{part}/{block}": value for block, value in moo.get(part, {}).items()}
    for block, weights in moo.get("weights", {}).items():
        scalars |= {f"weights/{block}/{objective}": w for objective, w in weights.items()}
    for i, row in enumerate(moo.get("cosine", [])):
        for j in range(i + 1, len(row)):
            scalars[f"cosine/{objectives[i]}~{objectives[j]}"] = row[j]
    return scalars


def _write_scalars(writer: Any, scalars: Mapping[str, float | None], step: int) -> None:
    for name, value in scalars.items():
        if value is not None:
            writer.add_scalar(name, value, step)
