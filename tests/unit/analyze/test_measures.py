"""Planted structure comes out; definitions written out the slow way agree."""

from __future__ import annotations

import numpy as np
import pytest

from megatron_moo.analyze.measures import (
    cka,
    distances,
    explained,
    language_neurons,
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
