"""Diffusion processes: noise schedules, what a network predicts, the posterior, spacings of steps.

Ho et al., "Denoising Diffusion Probabilistic Models", 2020; the cosine schedule and learned variances of
Nichol & Dhariwal, "Improved DDPM", 2021; v-prediction of Salimans & Ho, "Progressive Distillation", 2022;
zero terminal SNR of Lin et al., "Common Diffusion Noise Schedules and Sample Steps Are Flawed", 2023.

Step t = 0 … T − 1 stands for the paper's t + 1. A level of noise is (α, σ), α² + σ² = 1, ᾱ = α²: x_t = α x₀ + σ ε.
The tables are made in f64: in f32 1 − ᾱ of the first steps has three digits.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vlx.core.errors import UserError

Images = Float[Array, "batch height width channels"]


class Level(NamedTuple):
  """Levels of noise; of no noise it is (1, 0)."""

  alpha: Any  # √ᾱ
  sigma: Any  # √(1 − ᾱ)

  def like(self, x: jax.Array) -> "Level":
    """A level for each row, or one for all, as arrays that multiply x."""
    spread = lambda v: jnp.asarray(v, x.dtype).reshape(-1, *(1,) * (x.ndim - 1))
    return Level(spread(self.alpha), spread(self.sigma))


class Step(NamedTuple):
  """From a level to one of less noise."""

  now: Level
  after: Level
  beta: Any  # β of the way between them
  beta_tilde: Any  # β̃ = β σ_s² / σ_t²: the variance of q(x_s | x_t, x₀)


class Prediction(NamedTuple):
  """What a network says of x_t."""

  x0: Images
  eps: Images
  # The network's v in [0, 1]: ln Σ = v ln β + (1 − v) ln β̃; None where the variance is fixed.
  variance: Images | None = None


def linear_betas(steps: int, start: float = 1e-4, end: float = 0.02) -> np.ndarray:
  """DDPM §4."""
  return np.linspace(start, end, steps)


def scaled_linear_betas(steps: int, start: float = 0.00085, end: float = 0.012) -> np.ndarray:
  """√β is linear: latent diffusion's released code, which calls it linear."""
  return np.linspace(start**0.5, end**0.5, steps) ** 2


def cosine_betas(steps: int, offset: float = 0.008, most: float = 0.999) -> np.ndarray:
  """ᾱ_t = cos²((t/T + s)/(1 + s) · π/2), up to a factor (Improved DDPM, eq. 17)."""
  at = np.cos((np.arange(steps + 1) / steps + offset) / (1 + offset) * np.pi / 2) ** 2
  return np.minimum(1 - at[1:] / at[:-1], most)


def zero_terminal_snr(betas: np.ndarray) -> np.ndarray:
  """√ᾱ moved and scaled so that its last value is 0 and its first remains (Lin et al., algorithm 1)."""
  alpha = np.sqrt(np.cumprod(1 - betas))
  alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
  ratio = alpha**2
  return 1 - np.concatenate([ratio[:1], ratio[1:] / ratio[:-1]])


SCHEDULES = ("linear", "scaled_linear", "cosine")
PREDICTIONS = ("eps", "x0", "v")


@dataclasses.dataclass(frozen=True)
class Process:
  """A process and what its network says of it.

  Attributes:
    schedule: linear, scaled_linear or cosine.
    timesteps: T.
    beta_start: of the first step; the cosine schedule has neither.
    beta_end: of the last step.
    zero_terminal_snr: whether nothing of the image is left in the last step.
    prediction: eps, x0, or v = α ε − σ x₀.
    learned_variance: whether the network has as many channels again for the variance.
    ends_clean: whether sampling ends at the image itself, or, as Stable Diffusion's does, at the first step's level.
  """

  schedule: str = "linear"
  timesteps: int = 1000
  beta_start: float = 1e-4
  beta_end: float = 0.02
  zero_terminal_snr: bool = False
  prediction: str = "eps"
  learned_variance: bool = False
  ends_clean: bool = True

  def __post_init__(self):
    for name, value, known in (
      ("schedule", self.schedule, SCHEDULES),
      ("prediction", self.prediction, PREDICTIONS),
    ):
      if value not in known:
        raise ValueError(f"{name} is one of {', '.join(known)}, not {value!r}")
    if not 0 < self.beta_start <= self.beta_end < 1:
      raise ValueError(
        f"beta_start {self.beta_start} and beta_end {self.beta_end} do not rise in (0, 1)"
      )
    if self.timesteps < 2:
      raise ValueError(f"timesteps must be at least 2, not {self.timesteps}")
    if self.zero_terminal_snr and self.prediction == "eps":
      raise ValueError(
        "where nothing is left of the image the noise does not tell it: zero_terminal_snr takes"
        " prediction v or x0"
      )

  @functools.cached_property
  def betas(self) -> np.ndarray:
    """f64 `[T]`."""
    match self.schedule:
      case "linear":
        betas = linear_betas(self.timesteps, self.beta_start, self.beta_end)
      case "scaled_linear":
        betas = scaled_linear_betas(self.timesteps, self.beta_start, self.beta_end)
      case _:
        betas = cosine_betas(self.timesteps)
    return zero_terminal_snr(betas) if self.zero_terminal_snr else betas

  @functools.cached_property
  def levels(self) -> Level:
    """f64 `[T]` each."""
    with np.errstate(divide="ignore"):  # ln 0, of a last β of 1
      log_alpha_bar = np.cumsum(np.log1p(-self.betas))
    return Level(np.exp(log_alpha_bar / 2), np.sqrt(-np.expm1(log_alpha_bar)))

  def levels_at(self, t: np.ndarray) -> Level:
    """Those of steps, f64; between two steps σ/α is linear, as in k-diffusion."""
    whole = t.astype(int)
    if (whole == t).all():
      return Level(*(x[whole] for x in self.levels))
    ratio = np.interp(t, np.arange(self.timesteps), self.levels.sigma / self.levels.alpha)
    alpha = 1 / np.sqrt(1 + ratio**2)
    return Level(alpha, ratio * alpha)

  @property
  def snr(self) -> np.ndarray:
    """ᾱ / (1 − ᾱ), f64 `[T]`."""
    return (self.levels.alpha / self.levels.sigma) ** 2

  @functools.cached_property
  def steps(self) -> Step:
    """From each t to t − 1, f64 `[T]` each; the first β̃, 0, is as the second (Improved DDPM's code)."""
    after = Level(*(np.append(x, y[:-1]) for x, y in zip((1.0, 0.0), self.levels)))
    beta_tilde = self.betas * (after.sigma / self.levels.sigma) ** 2
    return Step(self.levels, after, self.betas, np.append(beta_tilde[1], beta_tilde[1:]))

  def level(self, t: Int[Array, " batch"]) -> Level:
    return _rows(self.levels, t)

  def step(self, t: Int[Array, " batch"]) -> Step:
    return _rows(self.steps, t)


def _rows(tables: Any, t: jax.Array) -> Any:
  return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32)[t], tables)


def add_noise(x0: Images, eps: Images, level: Level) -> Images:
  """x_t of q(x_t | x₀) (DDPM, eq. 4)."""
  alpha, sigma = level.like(x0)
  return alpha * x0 + sigma * eps


def target(prediction: str, x0: Images, eps: Images, level: Level) -> Images:
  """What the network is to say."""
  alpha, sigma = level.like(x0)
  return {"eps": eps, "x0": x0, "v": alpha * eps - sigma * x0}[prediction]


def predict(process: Process, output: Images, x: Images, level: Level) -> Prediction:
  """What a network's output says of x_t.

  Args:
    process: whose it is.
    output: with twice the channels of `x` where the variance is learned.
    x: x_t.
    level: of each row.
  """
  variance = None
  if process.learned_variance:
    output, variance = jnp.split(output, 2, axis=-1)
    variance = (variance + 1) / 2
  alpha, sigma = level.like(x)
  match process.prediction:
    case "eps":
      return Prediction((x - sigma * output) / alpha, output, variance)
    case "x0":
      return Prediction(output, (x - alpha * output) / sigma, variance)
    case _:
      return Prediction(alpha * x - sigma * output, alpha * output + sigma * x, variance)


def eps_of(x: Images, x0: Images, level: Level) -> Images:
  """The noise that x_t has if this is its image."""
  alpha, sigma = level.like(x)
  return (x - alpha * x0) / sigma


def posterior_mean(x: Images, x0: Images, step: Step) -> Images:
  """Of q(x_s | x_t, x₀), or of p where the network says x₀ (DDPM, eq. 6-7)."""
  alpha, sigma = step.now.like(x)
  alpha_s, sigma_s = step.after.like(x)
  beta, _ = Level(step.beta, 0.0).like(x)
  return (alpha / alpha_s * sigma_s**2 * x + alpha_s * beta * x0) / sigma**2


def log_variance(step: Step, v: Images) -> Images:
  """ln Σ = v ln β + (1 − v) ln β̃ (Improved DDPM, eq. 15); DDPM's two fixed ones are those of v = 0 and 1."""
  ln = lambda x: jnp.log(jnp.maximum(x, 1e-20))
  large, small = Level(step.beta, step.beta_tilde).like(v)
  return v * ln(large) + (1 - v) * ln(small)


def spaced(
  process: Process, count: int, spacing: str, offset: int = 0, ends_between: bool = False
) -> np.ndarray:
  """The steps that a sampler of `count` steps visits, from noise to image, f64; as in diffusers.

  Args:
    process: of T steps.
    count: of the steps.
    spacing: trailing (the last step and every T/count-th before it), leading (0, and every T//count-th), or
      linspace (both ends; parts of steps are rounded).
    offset: added to the steps of leading; Stable Diffusion has 1.
    ends_between: of leading and linspace one step more, without the last: for solvers that take the step from there
      to the image by themselves.

  Raises:
    UserError: for more steps than there are, or an offset that leads beyond them.
  """
  last = process.timesteps
  if count > last:
    raise UserError(f"num_steps must be at most {last}, the steps of the process, not {count}")
  more = int(ends_between and count < last)
  match spacing:
    case "trailing":
      return np.round(np.arange(last, 0, -last / count))[:count] - 1
    case "leading":
      steps = (np.arange(count + more) * (last // (count + more)))[::-1] + offset
      if steps[0] >= last:
        raise UserError(f"an offset of {offset} leads beyond the {last} steps of the process")
    case _:
      steps = np.round(np.linspace(0, last - 1, count + more))[::-1]
  return steps[:count].astype(float)
