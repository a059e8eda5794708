"""Guidance of diffusion models, and thresholds of what they say.

Ho & Salimans, "Classifier-Free Diffusion Guidance", 2022; rescaled: Lin et al., 2023, §3.4; in an interval of noise
alone: Kynkäänniemi et al., "Applying Guidance in a Limited Interval", 2024; by a classifier: Dhariwal & Nichol,
"Diffusion Models Beat GANs", 2021, §4; dynamic thresholds: Saharia et al., "Imagen", 2022, §2.3.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vlx.inference.diffusion import Images, Level, Prediction, Process, eps_of

# (x_t, t `[B]`, condition) → the network's output; a condition is a tree of arrays `[B, …]`.
Network = Callable[[Images, jax.Array, Any], Images]


def guide(given: Images, without: Images, scale: float, rescale: float = 0.0) -> Images:
  """without + s · (given − without), s = 1 + w of the paper; any prediction, for all are linear in one another.

  Args:
    given: what the network says under the condition.
    without: what it says under none.
    scale: s; 1 is no guidance.
    rescale: φ, how far the result is brought back to the deviation of `given`, of each row.
  """
  guided = without + scale * (given - without)
  if not rescale:
    return guided
  deviation = lambda x: x.std(axis=(1, 2, 3), keepdims=True)
  return guided * (rescale * deviation(given) / deviation(guided) + 1 - rescale)


def classifier_free(
  network: Network,
  process: Process,
  condition: Any,
  nothing: Any,
  scale: float,
  rescale: float = 0.0,
) -> Callable[[Images, jax.Array], Images]:
  """(x, t) → guided output, both passes as one batch. Of a learned variance it is that under the condition."""
  both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), condition, nothing)

  def denoise(x, t):
    output = network(jnp.concatenate([x, x]), jnp.concatenate([t, t]), both)
    given, without = jnp.split(output, 2)
    if not process.learned_variance:
      return guide(given, without, scale, rescale)
    (given, variance), (without, _) = (jnp.split(y, 2, axis=-1) for y in (given, without))
    return jnp.concatenate([guide(given, without, scale, rescale), variance], axis=-1)

  return denoise


def by_classifier(
  found: Prediction,
  x: Images,
  level: Level,
  log_probability: Callable[[Images], jax.Array],
  scale: float,
) -> Prediction:
  """ε − s σ ∇ ln p(y | x_t) (Dhariwal & Nichol, algorithm 2).

  Args:
    found: without guidance.
    x: x_t.
    level: of each row.
    log_probability: x_t → ln p(y | x_t) of each row, by a classifier that knows noisy images.
    scale: s.
  """
  alpha, sigma = level.like(x)
  gradient = jax.grad(lambda x: log_probability(x).sum())(x)
  eps = found.eps - scale * sigma * gradient
  return found._replace(eps=eps, x0=(x - sigma * eps) / alpha)


def threshold(
  found: Prediction, x: Images, level: Level, kind: str, percentile: float, bound: float = 1.0
) -> Prediction:
  """Keeps x₀ where images are, in [-1, 1], and the noise with it.

  Args:
    found: what is to be kept.
    x: x_t.
    level: of each row.
    kind: none; static, which clips; or dynamic, which divides by s where |x₀| is above 1, s being a percentile of
      each row's |x₀|.
    percentile: of 1.
    bound: of static, another one than 1.
  """
  if kind == "none":
    return found
  x0 = found.x0.clip(-bound, bound)
  if kind == "dynamic":
    most = jnp.quantile(jnp.abs(found.x0), percentile, axis=(1, 2, 3), keepdims=True).clip(1)
    x0 = found.x0.clip(-most, most) / most
  return found._replace(x0=x0, eps=eps_of(x, x0, level))
