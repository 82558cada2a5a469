"""How sure is the fit of Besiroglu et al.? Bootstraps it from their points; `archsearch.overtraining.laws` keeps the covariance.

    python benchmarks/chinchilla_fit.py svg_extracted_data.csv [--bootstraps 4000]

The points are those of https://github.com/epoch-research/analyzing-chinchilla (data/svg_extracted_data.csv, commit 9225883), which have
no licence and so are not kept here. As in that repository: D = C / (6 N), the five highest losses left out, Huber loss of log-losses with
delta 1e-3. Printed: what range of N, D and D/N the points cover; the fit; the standard errors beside the published ones; the covariance of
(ln A, ln B, ln E, alpha, beta); and how far intervals that are drawn from a normal with that covariance are from the bootstraps' own.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import minimize
from scipy.special import logsumexp

DELTA = 1e-3
LEFT_OUT = 5
START = np.array([6.0073404, 6.0179186, 0.5267228, 0.33917084, 0.2849083])
"""ln A, ln B, ln E, alpha, beta of Hoffmann et al.'s TeX source, where the published analysis starts too."""
PUBLISHED = {"A": (482.01, 124.58), "B": (2085.43, 1293.23), "E": (1.8172, 0.03), "alpha": (0.3478, 0.02), "beta": (0.3658, 0.02)}
"""Estimate and standard error, from the paper's table 1."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("points", type=Path, help="svg_extracted_data.csv")
    parser.add_argument("--bootstraps", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    points = pd.read_csv(options.points)[["Model Size", "Training FLOP", "loss"]].dropna()
    points = points[points["loss"] < sorted(points["loss"])[-LEFT_OUT]]
    N = points["Model Size"].to_numpy()
    D = points["Training FLOP"].to_numpy() / (6 * N)
    loss = points["loss"].to_numpy()
    for name, values in (("N", N), ("D", D), ("D/N", D / N), ("C", 6 * N * D)):
        print(f"{name:>4}: {values.min():.3g} to {values.max():.3g}, median {np.median(values):.3g}, {len(values)} points")

    logs = np.log(N), np.log(D), np.log(loss)
    best, value = fit(START, *logs)
    found = ", ".join(f"{name} {value:.6g}" for name, value in zip(PUBLISHED, natural(best), strict=True))
    print(f"fit: {found}; objective {value:.6e}")
    draw = np.random.default_rng(options.seed)
    drawn = []
    for _ in range(options.bootstraps):
        chosen = draw.integers(0, len(N), len(N))
        drawn.append(fit(best, *(log[chosen] for log in logs))[0])
    bootstraps = np.array(drawn)
    errors = np.std([natural(row) for row in bootstraps], axis=0)
    for (name, (estimate, error)), ours in zip(PUBLISHED.items(), errors, strict=True):
        print(f"{name:>6}: published {estimate} ({error}), bootstrapped here ({ours:.5g})")
    covariance = np.cov(bootstraps.T)
    print("covariance of (ln A, ln B, ln E, alpha, beta):")
    for row in covariance:
        print("    (" + ", ".join(f"{value:.6e}" for value in row) + "),")
    normal = draw.multivariate_normal(best, covariance, size=options.bootstraps)
    for size, tokens in ((354_483_968, 7.1e9), (354_483_968, 28e12), (70e9, 1.4e12)):
        for label, rows in (("bootstraps", bootstraps), ("normal", normal)):
            values = np.array([_loss(row, size, tokens) for row in rows])
            ratios = np.array([_ratio(row, 5.76e23) for row in rows])
            ends = np.quantile(values, [0.05, 0.5, 0.95])
            print(
                f"N {size:.3g}, D {tokens:.3g}, {label:>10}: loss {ends[1]:.4f} ({ends[0]:.4f} to {ends[2]:.4f}); D/N at 5.76e23 FLOP "
                + " to ".join(f"{end:.1f}" for end in np.quantile(ratios, [0.05, 0.95]))
            )


def fit(start: np.ndarray, log_n: np.ndarray, log_d: np.ndarray, log_loss: np.ndarray) -> tuple[np.ndarray, float]:
    """(ln A, ln B, ln E, alpha, beta) of the smallest sum of Huber losses, and that sum."""

    def objective(p: np.ndarray) -> tuple[float, np.ndarray]:
        terms = np.stack([p[0] - p[3] * log_n, p[1] - p[4] * log_d, np.full_like(log_n, p[2])])
        predicted = logsumexp(terms, axis=0)
        share = np.exp(terms - predicted)
        miss = log_loss - predicted
        near = np.abs(miss) <= DELTA
        value = np.where(near, 0.5 * miss**2, DELTA * (np.abs(miss) - 0.5 * DELTA)).sum()
        slope = -np.where(near, miss, DELTA * np.sign(miss)) * share
        gradient = np.array([slope[0].sum(), slope[1].sum(), slope[2].sum(), -(slope[0] * log_n).sum(), -(slope[1] * log_d).sum()])
        return 1e3 * value, 1e3 * gradient

    found = minimize(objective, start, jac=True, method="BFGS")
    return found.x, found.fun / 1e3


def natural(p: np.ndarray) -> np.ndarray:
    return np.array([*np.exp(p[:3]), *p[3:]])


def _loss(p: np.ndarray, size: float, tokens: float) -> float:
    a, b, e = np.exp(p[:3])
    return float(e + a / size ** p[3] + b / tokens ** p[4])


def _ratio(p: np.ndarray, compute: float) -> float:
    """Tokens a parameter on the frontier."""
    a, b, _ = np.exp(p[:3])
    g = (p[3] * a / (p[4] * b)) ** (1 / (p[3] + p[4]))
    size = g * (compute / 6) ** (p[4] / (p[3] + p[4]))
    return float(compute / (6 * size**2))


if __name__ == "__main__":
    main()
