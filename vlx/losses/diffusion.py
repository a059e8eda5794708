"""Losses of diffusion models.

DDPM (Ho et al., 2020, §3): the variational bound and L_simple. Improved DDPM (Nichol & Dhariwal, 2021, §3): the
hybrid loss of learned variances. Hang et al., "Efficient Diffusion Training via Min-SNR Weighting Strategy", 2023.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from einops import reduce
from jaxtyping import Array, Float, Int

from vlx.core.system import Term
from vlx.inference import diffusion
from vlx.inference.diffusion import Images, Prediction, Process

Rows = Float[Array, " batch"]
WEIGHTINGS = ("simple", "vlb", "min_snr")


def weights(process: Process, kind: str, gamma: float = 5.0) -> np.ndarray:
  """Of the squared error of what the network predicts, f64 `[T]`.

  Args:
    process: whose prediction is weighted. An error of ε is one of x₀ times the SNR, one of v times SNR + 1.
    kind: simple, 1 throughout; vlb, the bound's (in nats for each number, where Σ = β̃); min_snr, min(SNR, γ) of the
      error of x₀.
    gamma: of min_snr.
  """
  snr = process.snr
  of_x0 = {"eps": snr, "x0": np.ones_like(snr), "v": snr + 1}[process.prediction]
  match kind:
    case "simple":
      return np.ones_like(snr)
    case "vlb":
      # ½ (SNR(t−1) − SNR(t)) (Kingma et al., 2021, eq. 14). Of the first step a Gaussian of variance β: the SNR of no
      # noise is infinite.
      return np.append(0.5 / process.betas[0], (snr[:-1] - snr[1:]) / 2) / of_x0
    case _:
      return np.minimum(snr, gamma) / of_x0


def squared_error(
  process: Process,
  output: Images,
  x0: Images,
  eps: Images,
  t: Int[Array, " batch"],
  weights: np.ndarray,
) -> Term:
  """The weighted mean square of each row; of learned variances the part that says the mean."""
  if process.learned_variance:
    output, _ = jnp.split(output, 2, axis=-1)
  wanted = diffusion.target(process.prediction, x0, eps, process.level(t))
  rows = jnp.square(output.astype(jnp.float32) - wanted).mean(axis=(1, 2, 3))
  return Term((jnp.asarray(weights, jnp.float32)[t] * rows).sum(), len(rows))


def hybrid_term(
  process: Process,
  output: Images,
  x0: Images,
  x: Images,
  t: Int[Array, " batch"],
  weight: float = 0.001,
) -> Term:
  """T times the bound's part at t, in bits for each number, as a loss of the variance alone (Improved DDPM, eq. 16)."""
  mean, variance = jnp.split(output.astype(jnp.float32), 2, axis=-1)
  output = jnp.concatenate([jax.lax.stop_gradient(mean), variance], axis=-1)
  found = diffusion.predict(process, output, x, process.level(t))
  rows = process.timesteps * step_bits(process, found, x0, x, t)
  return Term(rows.sum(), len(rows), weight)


def gaussian_kl(mean, log_variance, other_mean, other_log_variance) -> jax.Array:
  """KL(N(mean, variance) ‖ N(other …)) of each number, in nats."""
  difference = log_variance - other_log_variance
  squares = jnp.square(mean - other_mean) * jnp.exp(-other_log_variance)
  return 0.5 * (jnp.exp(difference) - 1 - difference + squares)


def pixel_log_likelihood(x: Images, mean: Images, log_variance: jax.Array) -> Images:
  """ln of a Gaussian's mass in the bin of each pixel of 256 values in [-1, 1]; the outer bins have no end (DDPM,
  eq. 13).
  """
  scale = jnp.exp(-0.5 * log_variance)
  above, below = scale * (x - mean + 1 / 255), scale * (x - mean - 1 / 255)
  ln_cdf = jax.scipy.special.log_ndtr
  # Of a bin in the upper tail the mass is that of its mirror image: there the digits are.
  flip = above + below > 0
  above, below = jnp.where(flip, -below, above), jnp.where(flip, -above, below)
  top, bottom = x > 0.999, x < -0.999
  open_above, open_below = jnp.where(flip, bottom, top), jnp.where(flip, top, bottom)
  above, below = jnp.where(open_above, 40.0, above), jnp.where(open_below, -40.0, below)
  return ln_cdf(above) + jnp.log1p(-jnp.exp(jnp.minimum(ln_cdf(below) - ln_cdf(above), -1e-7)))


def step_bits(
  process: Process,
  found: Prediction,
  x0: Images,
  x: Images,
  t: Int[Array, " batch"],
  fixed_v: float = 0.0,
) -> Rows:
  """L_{t}, of t = 0 L_0 too, in bits for each number (DDPM, eq. 5).

  Args:
    process: of learned or fixed variances.
    found: what the network says of `x`.
    x0: images whose values are 0 … 255 on [-1, 1].
    x: x_t.
    t: of each row.
    fixed_v: of a fixed variance: 0 for β̃, 1 for β.
  """
  step = process.step(t)
  v = jnp.full_like(x, fixed_v) if found.variance is None else found.variance
  log_variance = diffusion.log_variance(step, v)
  mean = diffusion.posterior_mean(x, found.x0, step)
  true_mean = diffusion.posterior_mean(x, x0, step)
  kl = gaussian_kl(true_mean, diffusion.log_variance(step, jnp.zeros_like(x)), mean, log_variance)
  nll = -pixel_log_likelihood(x0, mean, log_variance)
  first = (t == 0)[:, None, None, None]
  return reduce(jnp.where(first, nll, kl), "b h w c -> b", "mean") / math.log(2)


def prior_bits(process: Process, x0: Images) -> Rows:
  """KL(q(x_T | x₀) ‖ N(0, 1)), in bits for each number: no network changes it."""
  alpha, sigma = (float(x[-1]) for x in process.levels)
  kl = gaussian_kl(alpha * x0, 2 * math.log(sigma), 0.0, 0.0)
  return reduce(kl, "b h w c -> b", "mean") / math.log(2)


def bound_bits(
  denoise: Callable[[Images, jax.Array], Images],
  process: Process,
  x0: Images,
  rng: jax.Array,
  fixed_v: float = 0.0,
) -> Rows:
  """The negative variational bound of each image, in bits for each number: all T steps, one noise for each.

  Args:
    denoise: (x_t, t `[B]`) → the network's output.
    process: see `Process`.
    x0: see `step_bits`.
    rng: of the noise.
    fixed_v: see `step_bits`.
  """

  def of_step(total, t):
    rows = jnp.full(len(x0), t)
    level = process.level(rows)
    x = diffusion.add_noise(x0, jax.random.normal(jax.random.fold_in(rng, t), x0.shape), level)
    found = diffusion.predict(process, denoise(x, rows), x, level)
    return total + step_bits(process, found, x0, x, rows, fixed_v), None

  total, _ = jax.lax.scan(of_step, prior_bits(process, x0), jnp.arange(process.timesteps))
  return total
