"""The calculator against published sizes, Megatron's own formula, and modules built for real."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from megatron_moo.cluster.settle import Settled, settle
from megatron_moo.errors import MooError
from megatron_moo.training import platform
from megatron_moo.training.recipe import load_recipe
from tests.end_to_end.conftest import ROOT, TINY

RECIPES = ROOT / "examples" / "slurm" / "recipes"
GIB = 2**30


@pytest.fixture(scope="module", autouse=True)
def _megatron() -> None:
    platform.prepare()


def settled(path: Path, gpus: int, *flags: str, gpus_per_node: int = 8) -> Settled:
    return settle(load_recipe(path, flags), gpus, gpus_per_node)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    tags = "".join(f"  {tag}: {{train: [{tag}.txt]}}\n" for tag in ("el", "ko", "tr"))
    (tmp_path / "languages.yaml").write_text(f"tokenizer: byte\nlanguages:\n{tags}", encoding="utf-8")
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY.format(languages="languages.yaml"), encoding="utf-8")
    return path


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("recipe", "parameters"),
    # The numbers of the model cards' safetensors.
    [("llama-3-8b", 8_030_261_248), ("qwen3-8b-base", 8_190_735_360), ("gemma-3-1b", 999_885_952)],
)
def test_parameters_are_those_of_the_published_models(recipe: str, parameters: int) -> None:
    from megatron_moo.cluster import world

    assert world.total_parameters(settled(RECIPES / f"{recipe}.yaml", 8).args) == parameters


def test_states_are_those_of_megatrons_own_formula() -> None:
    """18 bytes a parameter, 12 of them shared by the ranks: bf16 weights, fp32 gradients, fp32 Adam."""
    from megatron.training.theoretical_memory_usage import compute_weight_and_optimizer_memory

    from megatron_moo.cluster import world
    from megatron_moo.cluster.memory import memory_of

    for flags in ((), ("--tensor-model-parallel-size", "2"), ("--pipeline-model-parallel-size", "2")):
        found = settled(RECIPES / "llama-3-8b.yaml", 8, *flags)
        stages = world.stages(found.args)
        held = max(memory.parameters + memory.gradients + memory.optimizer for memory in
                   (memory_of(found, stage) for stage in stages))  # fmt: skip
        assert held == pytest.approx(compute_weight_and_optimizer_memory(found.args), rel=1e-3), flags
        # Llama-3-8B at TP 1 on 8 ranks: about 60 GB before any row.
        if not flags:
            assert held == pytest.approx(60e9, rel=0.01)


def test_a_tiny_model_is_counted_as_it_is_built(tiny: Path) -> None:
    from megatron_moo.cluster import world

    found = settled(tiny, 2)
    hidden, ffn, vocabulary = 32, 64, 384  # 257 bytes padded to a multiple of 128
    layer = 4 * hidden * hidden + 3 * hidden * ffn + 2 * hidden
    parameters = 2 * layer + vocabulary * hidden + hidden
    assert world.total_parameters(found.args) == parameters
    (stage,) = world.stages(found.args)
    assert stage.parameters == parameters and stage.frozen == 0
    assert [buffer.members for buffer in stage.buffers] == [(0, 1)]
    assert parameters <= stage.gradient_values < parameters + 64 * 20 + 128, "padding only"


def test_layouts_cut_parameters_and_groups(tiny: Path) -> None:
    from megatron_moo.cluster import world

    found = settled(
        tiny, 16, "--tensor-model-parallel-size", "2", "--pipeline-model-parallel-size", "2",
        "--untie-embeddings-and-output-weights",
    )  # fmt: skip
    first, last = world.stages(found.args)
    assert (first.rank, last.rank) == (0, 8)
    assert [buffer.members for buffer in first.buffers] == [(0, 2, 4, 6)]
    assert [buffer.members for buffer in last.buffers] == [(8, 10, 12, 14)]
    # One layer each; the embedding before, the output layer and the last norm (not cut by TP) after.
    assert last.parameters - first.parameters == 32
    assert len(last.buffers[0].buckets) == 1, "a later stage is one bucket"


def test_frozen_parameters_have_no_gradients(tiny: Path) -> None:
    from megatron_moo.cluster import world
    from megatron_moo.cluster.memory import memory_of

    (whole,) = world.stages(settled(tiny, 2).args)
    found = settled(tiny, 2, "--freeze", "embedding")
    (stage,) = world.stages(found.args)
    assert stage.frozen == 384 * 32
    assert whole.gradient_values - stage.gradient_values == pytest.approx(384 * 32, abs=128)
    assert memory_of(found, stage).parameters == 4 * whole.parameters


def test_rows_in_flight_follow_parking(tiny: Path) -> None:
    """The plan counts what parking holds beside the gradient buffers, by parking's own rule."""
    from megatron_moo.buckets.parking import rooms
    from megatron_moo.cluster import world
    from megatron_moo.cluster.memory import memory_of
    from megatron_moo.cluster.world import Buffer

    found = settled(tiny, 2)
    (stage,) = world.stages(found.args)

    def flying(*buffers: tuple[int, ...], of: Settled = found, travels: int = 2) -> float:
        held = tuple(Buffer(sizes, tuple(range(travels)), False) for sizes in buffers)
        return memory_of(of, dataclasses.replace(stage, buffers=held)).flying_rows

    assert memory_of(found, stage).flying_rows == 4 * rooms([stage.buffers[0].buckets])[1]
    # The first bucket's room serves all; then a spare of 51 and a receive buffer; then two chunks of one bucket each.
    for buffers in (((64, 8, 8),), ((51, 50, 50, 1, 51),), ((64,), (64,)), ((400,) * 10, (40,) * 2)):
        assert flying(*buffers) == 4 * rooms(buffers)[1], buffers
    assert flying((64,), (64,)) == 4 * 64, "one receive buffer for both"
    assert flying((400,) * 10, (40,) * 2) == 4 * 440, "two spares side by side, within 2 %"
    assert flying((64,), travels=1) == 0
    # Passes that park nothing use one receive buffer, which may be larger than the spare.
    small_spare = (58,) * 7 + (534,)
    assert 4 * rooms([small_spare])[1] <= flying(small_spare, of=settled(tiny, 2, "--moo-slots", "2"))
    assert flying(small_spare, of=settled(tiny, 2, "--moo-slots", "2")) >= 4 * 534
    narrow = settled(tiny, 2, "--moo-wire", "bf16")
    assert flying((64,), (64,), of=narrow) == 2 * 2 * 64, "packed rows sent and received"


def test_bytes_between_nodes(tiny: Path) -> None:
    """Eight nodes of eight: a flat all-to-all sends about 7 times a ring's bytes out of a node (DESIGN section 3)."""
    from megatron_moo.cluster import world
    from megatron_moo.cluster.traffic import traffic_of

    flat = ("--moo-exchange", "flat")
    found = settled(tiny, 64, *flat)
    (stage,) = world.stages(found.args)
    traffic = traffic_of(found, stage)
    whole = 4 * stage.gradient_values
    assert traffic.sent == whole * 63 // 64 == traffic.ring
    assert traffic.between == traffic.sent * 56 // 63
    assert 8 * traffic.between / traffic.ring == pytest.approx(64 / 9, rel=1e-6)
    assert traffic_of(dataclasses.replace(found, gpus_per_node=64), stage).between == 0
    narrow = settled(tiny, 64, "--moo-wire", "bf16", *flat)
    assert traffic_of(narrow, stage).sent == traffic.sent // 2


def test_two_stages_send_less_than_a_ring_between_nodes(tiny: Path) -> None:
    """Groups inside a node: (K - 1)/K / g of the bucket leaves it; as many bytes in all."""
    from megatron_moo.cluster import world
    from megatron_moo.cluster.memory import group_size
    from megatron_moo.cluster.traffic import traffic_of

    odd = settled(tiny, 64)
    assert group_size(odd, world.stages(odd.args)[0].buffers[0]) == 1, "3 objectives do not divide 64 lanes"
    with (tiny.parent / "languages.yaml").open("a", encoding="utf-8") as more:
        more.write("  fi: {train: [fi.txt]}\n")
    found = settled(tiny, 64)
    (stage,) = world.stages(found.args)
    size, traffic, whole = (
        group_size(found, stage.buffers[0]),
        traffic_of(found, stage),
        4 * stage.gradient_values,
    )
    assert size > 1 and 64 // found.objectives % size == 0
    assert traffic.sent == pytest.approx(whole * 63 / 64, rel=1e-9)
    other = 64 // size
    on_this_node = max(1, 8 // size)
    assert traffic.between == pytest.approx(whole / 64 * (other - on_this_node), rel=1e-9)
    assert size == 8 and traffic.between < traffic.ring_between


@pytest.mark.parametrize(("gpus", "kept"), [(3, 1), (2, 3)])
def test_feedback_keeps_a_gradient_of_every_language_that_a_rank_computes(
    tiny: Path, gpus: int, kept: int
) -> None:
    """Three languages on three lanes stay where they are; on two lanes with two slots they take turns."""
    from megatron_moo.cluster import world
    from megatron_moo.cluster.memory import memory_of

    plain, fed = (
        settled(tiny, gpus, "--moo-wire", "fp8", *flags) for flags in ((), ("--moo-wire-feedback",))
    )
    stage = world.stages(plain.args)[0]
    more = memory_of(fed, stage).flying_rows - memory_of(plain, stage).flying_rows
    assert more == 4 * kept * stage.gradient_values


def test_the_first_way_that_fits_is_told(tiny: Path) -> None:
    """Rows of three slots at one lane: what `plan` advises follows the memory that is there."""
    from megatron_moo.cluster.estimate import Machine, estimate

    found = settled(tiny, 1, "--moo-slots", "4")

    def on(limit: float) -> Any:
        return estimate(found, Machine(1, 8, limit, 0.0, 350.0, 200.0, 40.0, 2000.0))

    roomy = on(GIB)
    assert roomy.fits and (roomy.advice.rows, roomy.advice.hold, roomy.advice.passes) == ("fp32", 0, 4)
    gradient = roomy.fullest.gradients
    assert roomy.fullest.kept_rows == 3 * gradient
    base = roomy.fullest.total - 3 * gradient
    halves = on(base + 2 * gradient)
    assert not halves.fits and (halves.advice.rows, halves.advice.hold) == ("bf16", 0)
    two = on(base + 1.2 * gradient)
    assert (two.advice.rows, two.advice.hold, two.advice.passes) == ("bf16", 2, 10)
    # The sum of scaled gradients is one gradient in fp32, however few rows are kept.
    one = on(base + gradient)
    assert one.advice.bytes <= base + gradient
    assert on(base + 0.9 * gradient).advice is None


def test_what_other_modes_keep_is_counted(tiny: Path) -> None:
    """Measuring keeps fp32 whatever the rows are; weights that last add a scaled gradient up in fp32."""
    from megatron_moo.cluster.estimate import Machine, estimate

    def at(*flags: str) -> Any:
        found = settled(tiny, 1, "--moo-rows", "bf16", *flags)
        return estimate(found, Machine(1, 8, GIB, 0.0, 350.0, 200.0, 40.0, 2000.0))

    for flags, gradients in (
        (("--moo-observe", "--moo-slots", "4"), 3),
        (("--moo-observe", "--moo-slots", "2"), 1),
    ):
        told = at(*flags)
        assert told.fullest.kept_rows == gradients * told.fullest.gradients, flags
        # Neither narrower rows nor repeated passes are a way out: MOO refuses or ignores them there.
        assert [(choice.rows, choice.hold) for choice in told.choices] == [("fp32", 0)]
    lasting = at("--moo-every", "2", "--moo-slots", "3")
    assert lasting.fullest.kept_rows == lasting.fullest.gradients, "two bf16 rows, or the sum"


def test_mistakes_are_one_line(tiny: Path) -> None:
    with pytest.raises(MooError, match="12 GPUs do not fill nodes of 8"):
        settled(tiny, 12)
    with pytest.raises(MooError, match="6 ranks do not divide into tensor 4"):
        settled(tiny, 6, "--tensor-model-parallel-size", "4")
    with pytest.raises(MooError, match="did you mean 'hidden-size'"):
        settled(tiny, 2, "--hiden-size", "4")
    with pytest.raises(MooError, match="100 is not a multiple of 8"):
        settled(tiny, 2, "--global-batch-size", "100")
    (tiny.parent / "languages.yaml").write_text("tokenizer: byte\n", encoding="utf-8")
    with pytest.raises(MooError, match=r"languages.yaml: cannot be read \('languages'\)"):
        settled(tiny, 2)


def test_flags_of_an_imported_model(tiny: Path) -> None:
    folder = tiny.parent / "ckpt"
    folder.mkdir()
    (folder / "model.yaml").write_text("{hidden-size: 64, kv-channels: 16}\n", encoding="utf-8")
    found = settled(tiny, 2, "--pretrained-checkpoint", str(folder))
    assert found.args.kv_channels == 16 and found.args.hidden_size == 32
    assert any(note.startswith("hidden-size is 32 in the recipe and 64 in") for note in found.notes)
    assert any(note.startswith("kv-channels is taken from") for note in found.notes)
