"""Measures of images against their closed forms."""

import numpy as np

from vlx.evaluate.metrics import images as metrics


def with_moments(mean, covariance, count=64, seed=0):
  """Rows whose mean and covariance are exactly these."""
  x = np.random.default_rng(seed).normal(size=(count, len(mean)))
  x -= x.mean(axis=0)
  x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
  return x @ np.linalg.cholesky(np.asarray(covariance)).T + mean


def test_fid_of_commuting_covariances():
  """‖μ − ν‖² + Σ (√λ − √κ)², in a turned basis."""
  turn, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))
  first, second = np.array([1.0, 4.0, 9.0]), np.array([4.0, 1.0, 0.25])
  x = with_moments([0, 0, 0], turn @ np.diag(first) @ turn.T)
  y = with_moments([1, 2, 2], turn @ np.diag(second) @ turn.T, seed=2)
  expected = 9 + ((np.sqrt(first) - np.sqrt(second)) ** 2).sum()
  np.testing.assert_allclose(metrics.fid(x, y), expected, rtol=1e-8)
  np.testing.assert_allclose(metrics.fid(x, x), 0, atol=1e-8)


def test_fid_where_they_do_not_commute_and_are_singular():
  """In two dimensions tr (ΣΤ)½ = √(tr ΣΤ + 2 √det ΣΤ)."""
  a, b = np.array([[2.0, 1.0], [1.0, 3.0]]), np.array([[1.0, -0.5], [-0.5, 0.5]])
  expected = np.trace(a + b) - 2 * np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a @ b)))
  np.testing.assert_allclose(
    metrics.fid(with_moments([0, 0], a), with_moments([0, 0], b, seed=3)), expected
  )
  flat = np.outer(np.random.default_rng(0).normal(size=9), [1.0, 2.0])
  np.testing.assert_allclose(metrics.fid(flat, flat + [3.0, 0.0]), 9, atol=1e-6)


def test_kid_pair_by_pair():
  x, y = (np.random.default_rng(i).normal(i, 1, size=(5 + i, 4)) for i in range(2))
  k = lambda a, b: (sum(p * q for p, q in zip(a, b)) / 4 + 1) ** 3
  within = lambda z: np.mean([k(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j])
  expected = within(x) + within(y) - 2 * np.mean([k(a, b) for a in x for b in y])
  np.testing.assert_allclose(metrics.kid(x, y), expected)


def test_precision_and_recall():
  grid = np.arange(10.0)[:, None]
  assert metrics.precision_recall(grid, grid, k=1) == (1.0, 1.0)
  assert metrics.precision_recall(grid, grid + 100, k=1) == (0.0, 0.0)
  # What is made is real, but is a part of it: the radii of the made, 0.1, reach few of the real.
  assert metrics.precision_recall(grid, np.linspace(4, 5, 11)[:, None], k=1) == (1.0, 0.2)


def test_psnr():
  image = np.zeros((2, 4, 4, 3))
  other = image + np.array([0.2, 0.02])[:, None, None, None]
  np.testing.assert_allclose(metrics.psnr(image, other), [20, 40])


def test_features_that_are_no_numbers_have_no_distance():
  x, y = np.ones((6, 3)), np.ones((6, 3))
  y[2, 1] = np.nan
  assert np.isnan(metrics.fid(x, y)) and np.isnan(metrics.kid(x, y))
  assert metrics.precision_recall(x, y)[0] < 1
