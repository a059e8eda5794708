"""How sets of images compare: pure functions, mostly of features `[N, D]`, f64, of any
extractor.
"""

import numpy as np

NEIGHBOURS = 3  # of Kynkäänniemi et al., 2019, §3; a set has more images


def fid(x: np.ndarray, y: np.ndarray) -> float:
  """Fréchet distance of the Gaussians with the features' means and covariances (Heusel et al.,
  2017, eq. 6).

  ‖μ − ν‖² + tr(Σ + Τ − 2 (Σ½ Τ Σ½)½). The estimate falls with the number of images: compare equal
  numbers.

  NaN of features that are no numbers.
  """
  if not (np.isfinite(x).all() and np.isfinite(y).all()):
    return float("nan")
  (mean, covariance), (other_mean, other) = (
    (z.mean(axis=0), np.cov(z, rowvar=False)) for z in (x, y)
  )
  covariance, other = np.atleast_2d(covariance), np.atleast_2d(other)
  half = _root(covariance)
  cross = np.trace(_root(half @ other @ half))
  return float(
    np.sum((mean - other_mean) ** 2) + np.trace(covariance) + np.trace(other) - 2 * cross
  )


def _root(matrix: np.ndarray) -> np.ndarray:
  """The square root of a symmetric, positive semi-definite matrix; what rounding has put below zero counts as
  zero.
  """
  values, vectors = np.linalg.eigh(matrix)
  return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def kid(x: np.ndarray, y: np.ndarray) -> float:
  """Squared maximum mean discrepancy, kernel (⟨a, b⟩/D + 1)³, unbiased (Bińkowski et al., 2018,
  §3).
  """
  kernel = lambda a, b: (a @ b.T / a.shape[1] + 1) ** 3
  within = lambda z: (kernel(z, z).sum() - np.trace(kernel(z, z))) / (len(z) * (len(z) - 1))
  return float(within(x) + within(y) - 2 * kernel(x, y).mean())


def precision_recall(
  real: np.ndarray, made: np.ndarray, k: int = NEIGHBOURS
) -> tuple[float, float]:
  """(share of `made` that lies among the real, share of `real` that lies among the made).

  Among: no further from some image than that one's k-th neighbour in its own set (Kynkäänniemi et
  al., 2019, §2).
  """
  radius = lambda z: np.sort(_distances(z, z), axis=1)[:, k]  # the first is the image itself
  between = _distances(real, made)
  precision = (between <= radius(real)[:, None]).any(axis=0).mean()
  recall = (between <= radius(made)[None]).any(axis=1).mean()
  return float(precision), float(recall)


def _distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  squares = (x**2).sum(axis=1)[:, None] + (y**2).sum(axis=1)[None] - 2 * x @ y.T
  return np.sqrt(np.maximum(squares, 0))


def psnr(image: np.ndarray, other: np.ndarray) -> np.ndarray:
  """10 log₁₀(2² / mean squared error) of each image `[B, H, W, 3]`, of values in [-1, 1]."""
  return 10 * np.log10(4 / np.maximum(np.mean((image - other) ** 2, axis=(1, 2, 3)), 1e-12))
