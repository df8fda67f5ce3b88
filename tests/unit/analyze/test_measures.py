"""Planted structure comes out; definitions written out the slow way agree."""

from __future__ import annotations

import numpy as np
import pytest

from megatron_moo.analyze.measures import (
    cka,
    cka_chance,
    distances,
    explained,
    language_neurons,
    linear_cka,
    linear_cka_chance,
    probe,
    retrieval,
    silhouette,
)

L, N, H = 3, 60, 16


def _planted(language: float, meaning: float, noise: float, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return (
        language * random.normal(size=(L, 1, H))
        + meaning * random.normal(size=(1, N, H))
        + noise * random.normal(size=(L, N, H))
    )


def test_separate_languages_and_mixed_ones() -> None:
    apart, mixed = _planted(3.0, 0.3, 0.3), _planted(0.0, 1.0, 0.3)
    assert silhouette(apart) > 0.6 and abs(silhouette(mixed)) < 0.1
    assert probe(apart) == 1.0
    chance = np.mean([probe(_planted(0.0, 1.0, 1.0, seed), seed=seed) for seed in range(8)])
    assert abs(chance - 1 / L) < 0.1
    assert distances(apart)[0, 1] > 3 > 0.5 > distances(mixed)[0, 1]


def test_the_probe_is_scored_on_sentences_that_it_never_saw() -> None:
    # Every sentence is its own direction: an unheld-out probe could learn all of them by heart.
    random = np.random.default_rng(1)
    x = random.normal(size=(L, N, 400))
    assert probe(x) < 0.6


def test_translations_are_found_where_meaning_is_shared() -> None:
    x = _planted(5.0, 1.0, 0.05)
    found = retrieval(x)
    assert found.min() == 1.0
    assert np.array_equal(np.diag(retrieval(_planted(1.0, 0.0, 1.0))), np.ones(L))
    assert retrieval(_planted(1.0, 0.0, 1.0))[0, 1] < 0.15
    # By hand, one pair.
    y = _planted(1.0, 0.5, 0.7, seed=3)
    a, b = y[0] - y[0].mean(0), y[1] - y[1].mean(0)
    right = 0
    for n in range(N):
        cosines = [a[n] @ b[m] / np.linalg.norm(a[n]) / np.linalg.norm(b[m]) for m in range(N)]
        right += int(np.argmax(cosines)) == n
    assert retrieval(y)[0, 1] == pytest.approx(right / N)


def test_variance_adds_up_and_says_whose_it_is() -> None:
    x = _planted(1.0, 0.5, 0.25)
    share = explained(x)
    assert sum(share.values()) == pytest.approx(1.0)
    grand = x.mean((0, 1))
    slow = sum(float(((x[lang].mean(0) - grand) ** 2).sum()) * N for lang in range(L))
    slow /= sum(float(((x[lang, n] - grand) ** 2).sum()) for lang in range(L) for n in range(N))
    assert share["language"] == pytest.approx(slow)
    assert explained(_planted(2.0, 0.0, 0.0))["language"] == pytest.approx(1.0)
    assert explained(_planted(0.0, 2.0, 0.0))["meaning"] == pytest.approx(1.0)
    assert set(explained(np.zeros((L, N, H))).values()) == {0.0}


def test_cka_is_hsic_written_out() -> None:
    x = _planted(1.0, 1.0, 0.5, seed=4)
    centre = np.eye(N) - np.ones((N, N)) / N

    def hsic(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.trace(centre @ a @ a.T @ centre @ b @ b.T))

    slow = hsic(x[0], x[1]) / (hsic(x[0], x[0]) * hsic(x[1], x[1])) ** 0.5
    assert cka(x)[0, 1] == pytest.approx(slow)
    turn, _ = np.linalg.qr(np.random.default_rng(5).normal(size=(H, H)))
    turned = np.stack([x[0], 3.0 * x[0] @ turn + 1.0])
    assert cka(turned)[0, 1] == pytest.approx(1.0)


def test_owned_neurons_are_those_that_were_planted() -> None:
    active = np.full((L, 10), 0.4)
    active[:, 3] = [0.5, 0.001, 0.0]  # of language 0
    active[:, 5] = [0.0, 0.002, 0.3]  # of language 2
    active[:, 7] = [0.4, 0.4, 0.0]  # of two languages
    active[:, 9] = [0.001, 0.0, 0.0]  # asleep
    found = language_neurons(active)
    assert found["owned"] == [1, 0, 1] and found["share"] == pytest.approx(0.2)
    assert 0.5 < found["entropy"] < 1.0
    assert language_neurons(np.full((L, 4), 0.3))["entropy"] == pytest.approx(1.0)


def test_silhouette_is_its_definition() -> None:
    """Rousseeuw's, written out: (b - a) / max(a, b) over all sentences, by cosine distance."""
    x = _planted(0.7, 1.0, 0.5, seed=6)[:, :12]
    rows = x.reshape(-1, H)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    apart = 1 - unit @ unit.T
    labels = np.repeat(np.arange(L), 12)
    values = []
    for i, label in enumerate(labels):
        own = [apart[i, j] for j in range(len(rows)) if labels[j] == label and j != i]
        others = [
            np.mean([apart[i, j] for j in range(len(rows)) if labels[j] == o]) for o in range(L) if o != label
        ]
        a, b = np.mean(own), min(others)
        values.append((b - a) / max(a, b))
    assert silhouette(x) == pytest.approx(np.mean(values))


def test_the_probe_is_multinomial_logistic_regression() -> None:
    """The same loss minimised by scipy on the same split: the same share of held-out sentences is right."""
    from scipy.optimize import minimize
    from scipy.special import logsumexp

    x = _planted(0.35, 1.0, 0.6, seed=7)
    order = np.random.default_rng(0).permutation(N)
    test, train = order[: round(0.3 * N)], order[round(0.3 * N) :]
    middle, scale = x[:, train].mean((0, 1)), x[:, train].std((0, 1))
    inside, outside = ((x[:, part] - middle) / scale for part in (train, test))
    flat, labels = inside.reshape(-1, H), np.repeat(np.arange(L), len(train))

    def loss(packed: np.ndarray) -> float:
        w, b = packed[: L * H].reshape(L, H), packed[L * H :]
        scores = flat @ w.T + b
        return float(
            0.1 * (logsumexp(scores, axis=1) - scores[np.arange(len(flat)), labels]).sum()
            + 0.5 * (w**2).sum()
        )

    found = minimize(loss, np.zeros(L * H + L), method="L-BFGS-B", options={"maxfun": 200_000}).x
    said = (outside @ found[: L * H].reshape(L, H).T + found[L * H :]).argmax(-1)
    right = float((said == np.arange(L)[:, None]).mean())
    assert 0.5 < right < 1.0
    assert probe(x) == pytest.approx(right, abs=1.01 / said.size)  # one sentence may lie on the border


def test_distances_by_hand() -> None:
    x = np.zeros((2, 2, 2))
    x[0] = [[0, 1], [0, -1]]  # mean (0, 0), spread 1
    x[1] = [[6, 11], [6, 5]]  # mean (6, 8), spread 3
    np.testing.assert_allclose(distances(x), [[0, 5], [5, 0]])  # 10 apart, mean spread 2


def test_entropy_and_its_effective_number_are_scipys() -> None:
    from scipy.stats import entropy

    active = np.random.default_rng(8).gamma(0.15, size=(4, 200)) % 1.0
    each = entropy(active, axis=0)  # scipy normalises
    mine = (np.exp(each) < 1.5) & (active.max(0) >= 0.01)
    found = language_neurons(active)
    assert found["owned"] == [int((mine & (active.argmax(0) == i)).sum()) for i in range(4)]
    assert min(found["owned"]) > 3 and found["share"] == pytest.approx(mine.mean())
    assert found["entropy"] == pytest.approx(each[active.max(0) >= 0.01].mean() / np.log(4))
    # Two languages alike are an effective number of two, whatever a third does not do.
    assert language_neurons(np.array([[0.5], [0.5], [0.0]]), most=2.01)["share"] == 1.0
    assert language_neurons(np.array([[0.5], [0.5], [0.0]]), most=1.99)["share"] == 0.0


def test_cka_between_models_of_unequal_width() -> None:
    random = np.random.default_rng(9)
    a = random.normal(size=(N, H))
    turn, _ = np.linalg.qr(random.normal(size=(H, H)))
    wider = np.concatenate([3.0 * a @ turn + 1.0, np.zeros((N, 5))], axis=1)
    assert linear_cka(a, wider) == pytest.approx(1.0)
    assert linear_cka(a, random.normal(size=(N, 1))) < 0.5
    assert linear_cka(a, np.ones((N, 3))) == 0.0
    both = np.stack([a, a + random.normal(size=(N, H))])
    assert linear_cka(both[0], both[1]) == pytest.approx(cka(both)[0, 1])


def test_the_plane_is_principal_components() -> None:
    from sklearn.decomposition import PCA

    from megatron_moo.analyze.analyze import plane

    x = _planted(1.0, 1.0, 0.3, seed=10)
    theirs = PCA(2).fit_transform(x.reshape(-1, H)).reshape(L, N, 2)
    np.testing.assert_allclose(np.abs(plane(x)), np.abs(theirs), atol=1e-8)


def test_chance_of_cka_is_that_of_shuffled_sentences() -> None:
    x = _planted(1.0, 1.0, 0.5, seed=4)[:, :12]  # few sentences: chance is far from 0
    random = np.random.default_rng(0)
    shuffled = []
    for _ in range(3000):
        y = x.copy()
        y[1] = y[1][random.permutation(12)]
        shuffled.append(cka(y)[0, 1])
    assert cka_chance(x)[0, 1] == pytest.approx(np.mean(shuffled), abs=0.01)
    assert cka_chance(x)[0, 1] > 0.4 and cka(x)[0, 1] > cka_chance(x)[0, 1] + 0.2
    assert linear_cka_chance(x[0], x[1]) == pytest.approx(cka_chance(x)[0, 1])
    assert linear_cka_chance(x[0], np.zeros((12, 3))) == 0.0
