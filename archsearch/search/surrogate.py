"""What trained layouts teach about those that were not: a linear model of quality, with its uncertainty.

Few features on purpose: a dozen trainings support no more.
How little it may explain is told with every answer: its error when each training in turn is left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from archsearch.search.layouts import Codec, Layouts
from operators.costs import block_costs

FEWEST = 4
"""Trainings from which they are listened to; before that, the more parameters the better."""
ROUNDS = 30


@dataclass(frozen=True)
class Features:
    """A layout in numbers: how many layers of each operator, log FFN widths added up, log hidden size; beyond that where the
    layers of each operator are, and the log of how many, for most kinds saturate.

    Attributes:
        additive: without the last two, so that quality adds up over layers and the best can be certified.
    """

    codec: Codec
    additive: bool = False

    def __call__(self, layouts: Layouts) -> np.ndarray:
        """(n, P), each column within about -1 and 1."""
        codec, space = self.codec, self.codec.space
        ffns, deepest = len(space.ffns), codec.deepest
        here = layouts.codes < codec.blocks
        operator = np.where(here, layouts.codes // ffns, -1)
        is_kind = operator[:, :, None] == np.arange(len(space.operators))
        logs = np.log([ffn.intermediate_size for ffn in space.ffns])
        width = np.where(here, (logs - logs.mean())[layouts.codes % ffns], 0.0).sum(axis=1) / deepest
        size = np.log(space.hidden_sizes)[layouts.hidden] - np.log(space.hidden_sizes).mean()
        columns = [is_kind.sum(axis=1) / deepest, width[:, None], size[:, None]]
        if not self.additive:
            place = (np.arange(deepest) + 0.5) / here.sum(axis=1)[:, None] - 0.5
            columns.append((is_kind * np.where(here, place, 0.0)[:, :, None]).sum(axis=1) / deepest * 2)
            columns.append(np.log1p(is_kind.sum(axis=1)) / np.log1p(deepest))
        return np.concatenate(columns, axis=1)

    def worth(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What each block adds to the quality, (hidden sizes, B), and each shape, (hidden sizes, depths); of additive features."""
        space, deepest = self.codec.space, self.codec.deepest
        n, logs = len(space.operators), np.log([ffn.intermediate_size for ffn in space.ffns])
        block = (weights[:n, None] + weights[n] * (logs - logs.mean())[None, :]).ravel() / deepest
        size = weights[n + 1] * (np.log(space.hidden_sizes) - np.log(space.hidden_sizes).mean())
        return np.tile(block, (len(space.hidden_sizes), 1)), np.tile(size[:, None], (1, len(space.depths)))


@dataclass(frozen=True, eq=False)
class Surrogate:
    """Bayesian linear regression; noise and prior width by the evidence (MacKay, Bayesian Interpolation, 1992).

    Attributes:
        mean, covariance: of the weights, (P,) and (P, P).
        centre: (P,), mean features of what was trained; offset: its mean quality.
        left_out_error: root mean square of the predictions of each training from all others; None before `FEWEST`.
        spread: standard deviation of the qualities that were trained: what guessing their mean would err by.
    """

    features: Features
    mean: np.ndarray
    covariance: np.ndarray
    centre: np.ndarray
    offset: float
    trained: int
    left_out_error: float | None = None
    spread: float | None = None

    def __call__(self, layouts: Layouts, weights: np.ndarray | None = None) -> np.ndarray:
        """Expected quality, (n,), or the quality if the weights were these."""
        return np.asarray((self.features(layouts) - self.centre) @ (self.mean if weights is None else weights) + self.offset)

    @property
    def constant(self) -> float:
        """What no layer adds: the expected quality where all features are zero."""
        return self.offset - float(self.centre @ self.mean)

    def deviation(self, layouts: Layouts) -> np.ndarray:
        """Standard deviation of the expected quality, (n,); not of another training's noise."""
        x = self.features(layouts) - self.centre
        return np.asarray(np.sqrt(np.maximum(0.0, np.einsum("np,pq,nq->n", x, self.covariance, x))))

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """Weights that the trainings allow, at random: for Thompson sampling."""
        return np.asarray(rng.multivariate_normal(self.mean, self.covariance, check_valid="ignore"))

    @property
    def tells(self) -> bool:
        """Whether it predicts a training better than the mean of the others would."""
        return self.left_out_error is not None and self.spread is not None and self.left_out_error < self.spread


def fit(features: Features, layouts: Layouts, quality: np.ndarray) -> Surrogate:
    """From trained layouts and their quality, (n,), the larger the better."""
    n = len(layouts)
    if n < FEWEST or np.ptp(quality) == 0:
        return by_size(features, float(quality.mean()) if n else 0.0, n)
    x, offset = features(layouts), float(quality.mean())
    y, centre = quality - offset, x.mean(axis=0)
    x = x - centre
    noise, width = 0.25 * float(y.var()), float(y.var()) / max(float(x.var(axis=0).sum()), 1e-9)
    for _ in range(ROUNDS):
        covariance = np.linalg.inv(x.T @ x / noise + np.eye(x.shape[1]) / width)
        mean = covariance @ x.T @ y / noise
        known = x.shape[1] - np.trace(covariance) / width
        width = max(float(mean @ mean) / max(known, 1e-6), 1e-9)
        noise = max(float(((y - x @ mean) ** 2).sum()) / max(n - known, 1.0), 1e-4 * float(y.var()))
    hat = x @ covariance @ x.T / noise + 1 / n
    left_out = (y - x @ mean) / np.maximum(1 - np.diag(hat), 0.05)
    error, spread = float(np.sqrt((left_out**2).mean())), float(y.std() * n / (n - 1))
    return Surrogate(features, mean, covariance, centre, offset, n, error, spread)


def by_size(features: Features, offset: float = 0.0, trained: int = 0) -> Surrogate:
    """Before anything is known: the more parameters the better, per layer and in width. A guess, and told as one."""
    space = features.codec.space
    n, middle = len(space.operators), space.hidden_sizes[len(space.hidden_sizes) // 2]
    size = [block_costs(block, space.dims(middle)).parameters for block in space.blocks[:: len(space.ffns)]]
    weights = np.zeros(features(features.codec.random(1, np.random.default_rng(0))).shape[1])
    weights[:n] = np.array(size) / max(size)
    weights[n : n + 2] = 1.0
    return Surrogate(features, weights, np.diag(np.full(len(weights), 1e-12)), np.zeros(len(weights)), offset, trained)
