"""Measures of one layer's representations of aligned sentences.

Shapes: ``x`` is ``[L, N, H]``, language by sentence by dimension; sentence n means the same in every language.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def flat(x: Array) -> tuple[Array, NDArray[np.int64]]:
    """``[L * N, H]`` and the language of every row."""
    count, sentences, _ = x.shape
    return x.reshape(count * sentences, -1), np.repeat(np.arange(count), sentences)


def silhouette(x: Array) -> float:
    """Mean silhouette of the languages as clusters, cosine distance: 1 apart, 0 mixed, below 0 wrongly grouped.

    Rousseeuw 1987, by scikit-learn.
    """
    from sklearn.metrics import silhouette_score

    rows, labels = flat(x)
    return float(silhouette_score(rows, labels, metric="cosine"))


def probe(x: Array, held_out: float = 0.3, seed: int = 0) -> float:
    """Accuracy of a linear classifier of the language, on sentences that it never saw in any language.

    Logistic regression on standardised dimensions (Alain and Bengio 2016, arXiv 1610.01644); chance is 1 / L.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    sentences = x.shape[1]
    order = np.random.default_rng(seed).permutation(sentences)
    out = max(1, round(held_out * sentences))
    test, train = order[:out], order[out:]
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=200))
    model.fit(*flat(x[:, train]))
    return float(model.score(*flat(x[:, test])))


def retrieval(x: Array) -> Array:
    """``[L, L]`` share of sentences of language i whose nearest neighbour by cosine in language j is their translation.

    Every language is centred on its own mean first: what all its sentences share would decide otherwise
    (Libovicky et al. 2020). The diagonal is 1.
    """
    y = x - x.mean(1, keepdims=True)
    y = y / np.maximum(np.linalg.norm(y, axis=-1, keepdims=True), 1e-12)
    count, sentences, _ = x.shape
    found = np.ones((count, count))
    for i in range(count):
        for j in range(count):
            if i != j:
                found[i, j] = float(np.mean((y[i] @ y[j].T).argmax(1) == np.arange(sentences)))
    return found


def distances(x: Array) -> Array:
    """``[L, L]`` distance between the languages' means, in units of the mean distance of a sentence to its own mean."""
    means = x.mean(1)
    spread = float(np.linalg.norm(x - means[:, None], axis=-1).mean())
    return np.linalg.norm(means[:, None] - means[None], axis=-1) / max(spread, 1e-12)


def explained(x: Array) -> dict[str, float]:
    """Shares of the variance (sum of squares over all dimensions): of ``language`` (its mean), of ``meaning`` (the
    sentence's mean over languages), and what neither explains.

    The design is balanced, so the three add up to 1 (two-way analysis of variance without repetition).
    """
    grand = x.mean((0, 1))
    total = float(((x - grand) ** 2).sum())
    language = x.shape[1] * float(((x.mean(1) - grand) ** 2).sum())
    meaning = x.shape[0] * float(((x.mean(0) - grand) ** 2).sum())
    if total <= 0:
        return {"language": 0.0, "meaning": 0.0, "rest": 0.0}
    return {
        "language": language / total,
        "meaning": meaning / total,
        "rest": 1.0 - (language + meaning) / total,
    }


def cka(x: Array) -> Array:
    """``[L, L]`` linear centred kernel alignment between languages (Kornblith et al. 2019, arXiv 1905.00414)."""
    y = x - x.mean(1, keepdims=True)
    count = len(x)
    grams = [rows @ rows.T for rows in y]
    norms = [max(float(np.linalg.norm(gram)), 1e-300) for gram in grams]
    found = np.ones((count, count))
    for i in range(count):
        for j in range(i):
            found[i, j] = found[j, i] = float((grams[i] * grams[j]).sum()) / (norms[i] * norms[j])
    return found


def cka_chance(x: Array) -> Array:
    """``[L, L]`` what :func:`cka` is on average when the sentences of one language are shuffled.

    Far from 0 when dimensions are as many as sentences. Exact: over permutations P, the mean of ``<K, P M P'>`` of two
    centred Gram matrices is ``tr(K) tr(M) / (N - 1)``. The diagonal is 1.
    """
    y = x - x.mean(1, keepdims=True)
    effective = np.array([_flatness(rows) for rows in y])
    found = np.outer(effective, effective) / max(1, x.shape[1] - 1)
    np.fill_diagonal(found, 1.0)
    return found


def linear_cka_chance(a: Array, b: Array) -> float:
    """What :func:`linear_cka` is on average when the rows of one are shuffled."""
    return _flatness(a - a.mean(0)) * _flatness(b - b.mean(0)) / max(1, len(a) - 1)


def _flatness(rows: Array) -> float:
    """Trace over Frobenius norm of the Gram matrix of centred rows: the root of how many dimensions are in use."""
    small = rows @ rows.T if rows.shape[0] <= rows.shape[1] else rows.T @ rows
    norm = float(np.linalg.norm(small))
    return float(np.trace(small)) / norm if norm > 0 else 0.0


def linear_cka(a: Array, b: Array) -> float:
    """Linear CKA of ``[N, Ha]`` and ``[N, Hb]``: the same N things seen by two models (Kornblith et al. 2019).

    1 up to a rotation, a shift and a scale; 0 also where one of them is constant.
    """
    a, b = a - a.mean(0), b - b.mean(0)
    norms = float(np.linalg.norm(a.T @ a)) * float(np.linalg.norm(b.T @ b))
    return float(np.linalg.norm(a.T @ b)) ** 2 / norms if norms > 0 else 0.0


def language_neurons(active: Array, most: float = 1.5, least: float = 0.01) -> dict[str, Any]:
    """Neurons that one language owns, by the entropy of their activation over languages.

    Like LAPE (Tang et al. 2024, arXiv 2402.16438), with a threshold that means the same in every layer and model
    where LAPE takes the lowest percent: the effective number of languages exp(entropy) is below ``most``.

    Args:
        active: ``[L, neurons]`` share of a language's tokens on which a neuron's gate is above 0.
        least: a neuron must be active on so many tokens of its language.

    Returns:
        ``owned`` per language, ``share`` of all neurons, and the ``entropy`` (mean over active neurons, in units of
        log L: 1 is the same everywhere).
    """
    count = len(active)
    total = active.sum(0)
    p = active / np.maximum(total, 1e-12)
    entropy = -(p * np.log(np.maximum(p, 1e-300))).sum(0)
    alive = active.max(0) >= least
    mine = alive & (np.exp(entropy) < most)
    owner = active.argmax(0)
    mean = float(entropy[alive].mean() / np.log(count)) if alive.any() and count > 1 else 0.0
    return {
        "owned": [int((mine & (owner == language)).sum()) for language in range(count)],
        "share": float(mine.mean()),
        "entropy": mean,
    }
