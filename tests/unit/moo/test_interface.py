"""The contract of every method: names, options, shapes, dtypes, flags."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from megatron_moo.moo import METHODS, make_method, min_norm_weights, parse_options
from megatron_moo.moo.table import main, table

from .drawn import gramians, inputs

ROOT = Path(__file__).parents[3]
GOLDEN = torch.tensor([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "d"),
    [
        ("mgda", [0, 1, 1]),
        ("pcgrad", [0.5848, 3.8012, 3.8012]),
        ("upgrad", [0.2924, 1.9006, 1.9006]),
        ("dualproj", [0.5556, 1.1111, 1.1111]),
        ("imtl_g", [0.0767, 1, 1]),
        ("aligned_mtl", [0.2133, 0.9673, 0.9673]),
        ("cagrad", [0.1835, 1.2041, 1.2041]),
        ("fairgrad", [0.0766, 0.9985, 0.9985]),
        ("nash_mtl", [0.0766, 0.9985, 0.9985]),
        ("config", [0.1588, 2.0706, 2.0706]),
        ("mean", [1, 1, 1]),
        ("sum", [2, 2, 2]),
    ],
)
def test_golden_case(name: str, d: list[float]) -> None:
    """DESIGN, section 4."""
    found = make_method(name)(GOLDEN @ GOLDEN.T) @ GOLDEN
    assert found.tolist() == pytest.approx(d, abs=5.1e-5)


def test_the_methods_of_the_plan() -> None:
    plan = """mean token sum fixed random mgda pcgrad gradvac cagrad imtl_g aligned_mtl nash_mtl fairgrad
    dualproj
        upgrad config sdmgrad modo crmogm ema famo coba"""
    assert set(METHODS) == set(plan.split())


def test_linear_scalarisation() -> None:
    G = gramians(3)[:2]
    assert make_method("token")(G, tokens=[1, 2, 5]).tolist() == [[0.125, 0.25, 0.625]] * 2
    assert make_method("token")(G, tokens=torch.tensor([[1, 1, 2], [0, 0, 0]])).tolist() == [
        [0.25, 0.25, 0.5],
        [0] * 3,
    ]
    assert make_method("fixed", weights=[0.5, 2, 0])(G).tolist() == [[0.5, 2, 0]] * 2
    assert make_method("mean")(G, preference=[1, 1, 2]).tolist() == [[0.25, 0.25, 0.5]] * 2
    with pytest.raises(ValueError, match="2 weights for 3 objectives"):
        make_method("fixed", weights=[1, 2])(G)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    ("dtype", "rtol"),
    [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.float16, 1e-2), (torch.bfloat16, 5e-2)],
)
def test_dtypes(name: str, dtype: torch.dtype, rtol: float) -> None:
    """Any float goes in, fp64 comes out of fp64 and fp32 of the rest, close to the solution of the rounded
    Gramian."""
    G = (GOLDEN @ GOLDEN.T).to(dtype)
    given = inputs(name, 2)
    w = make_method(name)(G, **given)
    assert w.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.allclose(w.double(), make_method(name)(G.double(), **given), rtol=rtol, atol=1e-5)


@pytest.mark.parametrize("name", [name for name, spec in METHODS.items() if spec.gramian])
def test_fp32_gramians_stay_finite_and_close(name: str) -> None:
    """A rank-deficient G rounded to fp32 is indefinite; nothing may blow up."""
    G = gramians(5)[1::6]
    w = make_method(name)(G.float())
    assert w.isfinite().all()
    if name in ("mgda", "dualproj", "upgrad"):
        off = w.double() - make_method(name)(G)
        error = torch.einsum("bi,bij,bj->b", off, G, off).clamp(min=0).sqrt()
        assert (error <= 3e-3 * G.diagonal(dim1=-2, dim2=-1).sum(-1).sqrt()).all()


@pytest.mark.parametrize("name", METHODS)
def test_shapes_and_no_autograd(name: str) -> None:
    G = gramians(3)[:8].clone().requires_grad_()
    given = inputs(name, 3)
    for shaped in (G[0], G, G.reshape(2, 2, 2, 3, 3), G[:0]):
        method = make_method(name)
        w = method(shaped, **given)
        assert w.shape == shaped.shape[:-1] and not w.requires_grad
        for flag, value in method.flags.items():
            tail = (3,) if flag in ("absent", "nonfinite") else ()
            assert value.dtype == torch.bool and value.shape == (*shaped.shape[:-2], *tail), flag


@pytest.mark.parametrize("name", METHODS)
def test_deterministic_and_innocent(name: str) -> None:
    """Two fresh methods agree bitwise, whatever global draws were made; the Gramian is left alone."""
    G = gramians(4)[:20]
    before, state = G.clone(), torch.get_rng_state()
    first = make_method(name)(G, step=5, **inputs(name, 4))
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert torch.equal(make_method(name)(G, step=5, **inputs(name, 4)), first)
    assert torch.equal(G, before)


def test_a_preference_takes_the_place_of_u() -> None:
    G = gramians(3)[:50]
    for name, spec in METHODS.items():
        given = inputs(name, 3)
        plain = make_method(name)(G, **given)
        same = make_method(name)(G, preference=[2, 2, 2], **given)
        other = make_method(name)(G, preference=[0.7, 0.2, 0.1], **given)
        assert torch.allclose(plain, same, rtol=1e-9), name
        if not spec.state:  # those start from it
            assert torch.allclose(plain, other) != spec.preference, name


def test_a_row_counted_twice_is_a_row_preferred_twice() -> None:
    """What a preference means, for the methods that are a function of J^T u and the set of rows."""
    J = torch.randn(3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    twice = J[[0, 1, 2, 2]]
    for name in ("mean", "cagrad", "dualproj", "upgrad"):
        d = make_method(name)(J @ J.T, preference=[1, 1, 2]) @ J
        assert torch.allclose(d, make_method(name)(twice @ twice.T) @ twice, atol=1e-7), name


def test_min_norm_weights_takes_any_batch() -> None:
    w = min_norm_weights(torch.stack([GOLDEN @ GOLDEN.T, torch.zeros(2, 2).double()]))
    assert w[0].tolist() == pytest.approx([0.6, 0.4]) and w[1].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cagrad", {"c": 1.5}, r"option c=1.5: expected \[0, 1\)"),
        ("cagrad", {"c": "much"}, "option c='much'"),
        ("cagrad", {"c": float("nan")}, "option c=nan"),
        ("cagrad", {"alpha": 1}, "option alpha: cagrad has only c, normalize"),
        ("fairgrad", {"alpha": 0}, "option alpha=0"),
        ("aligned_mtl", {"scale": "max"}, r"option scale='max': expected min \| median \| rmse"),
        ("sdmgrad", {"iters": 2.5}, "option iters=2.5: expected whole numbers"),
        ("fixed", {"weights": [1, -1]}, "option weights"),
        ("mgda", {"normalize": "yes"}, "option normalize='yes'"),
        ("ema", {"of": "nothing"}, "unknown method 'nothing'"),
        ("cagard", {}, "unknown method 'cagard': choose from mean, token"),
        ("normal:mgda", {}, "unknown method 'normal:mgda'"),
    ],
)
def test_mistakes_are_named(name: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_method(name, **options)


def test_missing_and_misshapen_inputs_are_named() -> None:
    G = gramians(3)[:4]
    for name, need in (("token", "tokens"), ("famo", "losses"), ("coba", "losses"), ("ema:famo", "losses")):
        with pytest.raises(ValueError, match=f"needs {need}="):
            make_method(name)(G)
    with pytest.raises(ValueError, match=r"does not fit \(4, 3\)"):
        make_method("mean")(G, preference=[1, 2])
    with pytest.raises(ValueError, match="2 block names for 4 blocks"):
        make_method("mgda")(G, block=["a", "b"])
    with pytest.raises(ValueError, match="a Gramian has shape"):
        make_method("mgda")(torch.zeros(2, 3))


def test_parse_options() -> None:
    assert parse_options("cagrad", ["c=0.4"]) == {"c": 0.4}
    assert parse_options("fixed", ["weights=0.5, 1,2"]) == {"weights": (0.5, 1.0, 2.0)}
    assert parse_options("normalized:cagrad", ["c=0.1"]) == {"c": 0.1}
    assert parse_options("ema", ["of=fairgrad", "alpha=2", "decay=0.5"]) == {
        "of": "fairgrad",
        "alpha": 2.0,
        "decay": 0.5,
    }
    assert parse_options("mgda", None) == {}
    for items, message in (
        (["c"], "expected name=value"),
        (["c=1", "c=2"], "given twice"),
        (["d=1"], "option d"),
    ):
        with pytest.raises(ValueError, match=message):
            parse_options("cagrad", items)


def test_every_default_is_within_its_range_and_every_method_is_told() -> None:
    for name, spec in METHODS.items():
        method = make_method(name)
        assert method.spec is spec and spec.name == name and spec.paper and spec.problem
        module = sys.modules[type(method).__module__]
        assert module.__doc__ and "->" in module.__doc__, f"{name}: the file says problem and shapes"


def test_the_table_is_up_to_date(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (ROOT / "docs" / "methods.md").read_text() == table(), (
        "run python -m megatron_moo.moo.table --write docs/methods.md"
    )
    main(["--write", str(tmp_path / "methods.md")])
    assert (tmp_path / "methods.md").read_text() == table()
    main([])
    assert capsys.readouterr().out == table()


def test_it_imports_torch_and_nothing_else() -> None:
    script = (
        "import sys, torch; before = set(sys.modules); import megatron_moo.moo; "
        "new = {name.split('.')[0] for name in set(sys.modules) - before}; "
        "print(sorted(new - set(sys.stdlib_module_names)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "['megatron_moo']"
