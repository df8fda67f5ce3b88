"""How far a narrower wire moves the cosines of every block's Gramian, on the quickstart's model and languages.

    python bench/wire_blocks.py                              prints the table (a minute on one core)
    python bench/wire_blocks.py --write docs/wire.md         writes it to the end of the page

One process makes the 14 rows of a step and rounds them as two ranks would: the gradient buffer in Megatron's order, cut
into two shards, groups of 128 values from the beginning of a shard. Rows are those of a fresh model and of one that
some steps of the mean have trained.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from megatron_moo.kernels import PackedRows, pack_rows, unpack

ROOT = Path(__file__).resolve().parents[1]
MANIFEST = ROOT / "examples" / "udhr" / "languages.yaml"
BOUNDS = {"bf16": 1e-3, "fp8": 1e-2}
KINDS = ("model", "layer", "module", "param")
RANKS, ALIGNED = 2, 64
HEADING = "## Block by block"
ABOUT = """the quickstart's model and
languages, one seed, rows rounded as between two ranks. The bounds are those of the whole model. A block averages the
rounding of its values out, so norms by themselves (128 values each; `head` is the last one, as the embedding is
tied) are where the bounds are exceeded, if anywhere."""


def rounded(rows: Sequence[torch.Tensor], wire: str) -> list[torch.Tensor]:
    """Rows ``[K, *shape]`` of every parameter as they arrive."""
    sizes = [piece[0].numel() for piece in rows]
    padded = [
        torch.nn.functional.pad(piece.flatten(1), (0, -size % ALIGNED))
        for piece, size in zip(rows, sizes, strict=True)
    ]
    flat = torch.cat(padded[::-1], dim=1)
    flat = torch.nn.functional.pad(flat, (0, -flat.shape[1] % (RANKS * 128)))
    if wire == "bf16":
        got = flat.to(torch.bfloat16).float()
    else:
        shards = flat.view(len(flat), RANKS, -1).flatten(0, 1).contiguous()
        got = unpack(PackedRows(pack_rows(shards), shards.shape[1])).view(len(flat), -1)
    found = []
    for size, piece in zip(sizes[::-1], rows[::-1], strict=True):
        found.append(got[:, :size].view_as(piece))
        got = got[:, size + -size % ALIGNED :]
    return found[::-1]


def cosines(gramians: torch.Tensor) -> torch.Tensor:
    """``[B, K, K]``."""
    norm = gramians.diagonal(dim1=-2, dim2=-1).sqrt()
    return gramians / (norm[:, :, None] * norm[:, None, :]).clamp(min=1e-300)


def errors(names: Sequence[str], rows: Sequence[torch.Tensor], wire: str) -> list[str]:
    """Cells of a line for every kind of block: what the table's head says from ``block`` on."""
    from megatron_moo.experiment.blocks import Blocks, param_gramians

    exact, narrow = param_gramians(rows), param_gramians(rounded(rows, wire))
    lines = []
    for kind in KINDS:
        blocks = Blocks(names, [piece[0].numel() for piece in rows], kind)
        off = (cosines(blocks.gramians(narrow)) - cosines(blocks.gramians(exact))).abs().flatten(1).amax(1)
        worst, beyond = int(off.argmax()), int((off >= BOUNDS[wire]).sum())
        lines.append(
            f"{kind} | {len(off)} | {off[worst]:.1e} | {blocks.names[worst]} | {off.median():.1e} | "
            f"{BOUNDS[wire]:.0e} | {beyond} |"
        )
    return lines


def measure(steps: int, corpus: Path) -> list[str]:
    """Lines of the table."""
    from megatron_moo.data import LaneBatches, LaneSchedule, LanguageSampler, build_corpus, load_manifest
    from megatron_moo.experiment.adam import Adam
    from megatron_moo.experiment.blocks import combined
    from megatron_moo.experiment.engine import Engine
    from megatron_moo.experiment.gradients import GroupGradients
    from megatron_moo.experiment.setting import Setting

    setting = Setting(layers=4, hidden=128, ffn=384, heads=4, seq=128, micro_batch=4)
    manifest = load_manifest(MANIFEST)
    built = build_corpus(manifest, corpus)
    languages = len(manifest.languages)
    model = Engine(setting, built.vocab_size).model(1234)
    gradients = GroupGradients(model)
    adam = Adam(gradients.params, setting)
    schedule = LaneSchedule(languages, lanes=1, slots=languages, seed=1234)
    batches = LaneBatches(
        LanguageSampler(built, "train", setting.seq, 1234), schedule, manifest,
        micro_batch_size=setting.micro_batch, micro_batches=1, seed=1234,
    )  # fmt: skip
    lines = [
        "| wire | rows of | block | blocks | largest error of a cosine | in | median block | bound | beyond it |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    found: dict[str, list[str]] = {wire: [] for wire in BOUNDS}
    mean = torch.full((len(gradients.params), languages), 1.0 / languages, dtype=torch.float64)
    for step in range(steps + 1):
        drawn = [next(batches) for _ in range(languages)]
        batch = {
            key: torch.cat([item[key] for item in drawn])
            for key in ("tokens", "labels", "loss_mask", "position_ids")
        }
        rows, _ = gradients.rows(batch, languages)
        if step in (0, steps):
            name = "a fresh model" if step == 0 else f"step {step + 1}"
            for wire in BOUNDS:
                found[wire] += [f"| {wire} | {name} | {line}" for line in errors(gradients.names, rows, wire)]
        with torch.no_grad():
            adam.step(combined(rows, mean), 2e-3)
    return lines + [line for wire in found for line in found[wire]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=20, help="steps before the second measurement")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the table at the end of this page")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        lines = measure(args.steps, Path(folder) / "corpus")
    print("\n".join(lines))
    if args.write:
        page = args.write.read_text(encoding="utf-8").split(HEADING)[0].rstrip()
        command = f"python bench/wire_blocks.py --steps {args.steps} --write {args.write}"
        head = f"{HEADING}\n\n`{command}` wrote this part: {ABOUT}\n\n"
        args.write.write_text(f"{page}\n\n{head}" + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
