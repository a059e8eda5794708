"""Samplers of diffusion models: from noise to images along a spacing of steps.

Ancestral sampling: Ho et al., 2020, algorithm 2. DDIM and its inversion: Song et al., "Denoising Diffusion Implicit
Models", 2021, eq. 12. DPM-Solver++(2M): Lu et al., 2022, algorithm 2. Euler's method for the probability flow in
x/α over σ/α: Karras et al., 2022, table 1 (it is DDIM with η = 0, which a test says).

Each row's image is a function of its seed and condition, whatever the batch: noise i is drawn from (seed, i).
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vlx.core.errors import UserError
from vlx.inference import diffusion, guidance
from vlx.inference.diffusion import Images, Level, Prediction, Process, Step

METHODS = ("ddim", "ancestral", "dpm_solver", "euler")
SPACINGS = ("trailing", "leading", "linspace")
THRESHOLDS = ("none", "static", "dynamic")
# Where solvers divide by α or take its logarithm, so much is left of it: diffusers' value for zero terminal SNR.
LEAST_ALPHA = 2.0**-12

# (x_t, t `[B]`) → the network's output.
Denoise = Callable[[Images, jax.Array], Images]

# (steps done, of how many) → nothing.
Tell = Callable[[int, int], None]
_tells: list[Tell] = []  # of each `telling_steps` that is open


@contextlib.contextmanager
def telling_steps(tell: Tell) -> Iterator[None]:
  """In here `tell(done, steps)` is called after each step of `sample`, from a thread of JAX's; not for each row.

  The samples are the same. A function that was compiled outside of here tells nothing: one that may be called in both
  is compiled for `tells_steps()` (`vlx.model.call` is). With it a compiled program is not kept between processes.
  """
  _tells.append(tell)
  try:
    yield
    jax.effects_barrier()  # what was told late
  finally:
    _tells.remove(tell)


def tells_steps() -> bool:
  """Whether `telling_steps` is open."""
  return bool(_tells)


def _tell(done, steps, _) -> None:
  for tell in tuple(_tells):
    tell(int(done), int(steps))


@dataclasses.dataclass(frozen=True)
class Sampler:
  """How images are sampled.

  Attributes:
    num_steps: how often the network is called, with guidance twice.
    method: ddim, ancestral, dpm_solver (++, 2M) or euler.
    eta: of ddim: 0 draws no noise on the way, 1 as much as ancestral sampling.
    variance: of ancestral, where none is learned: 0 for β̃, 1 for β.
    spacing: of the steps: trailing, leading or linspace (vlx.inference.diffusion.spaced).
    offset: of leading.
    guidance_scale: s in without + s · (with − without); 1 is no guidance.
    guidance_rescale: how far guided predictions are brought back to the deviation of unguided ones.
    guidance_interval: the part of the steps, 1 the noisiest, in which there is guidance.
    threshold: of the image on the way: none, static or dynamic.
    percentile: of dynamic.
    bound: of static: what is kept in [-bound, bound]; 1 for images.
    strength: of a given image, how much of it becomes noise: 1 all of it, 0 leaves it as it is.
  """

  num_steps: int = 50
  method: str = "ddim"
  eta: float = 0.0
  variance: float = 0.0
  spacing: str = "trailing"
  offset: int = 0
  guidance_scale: float = 1.0
  guidance_rescale: float = 0.0
  guidance_interval: tuple[float, float] = (0.0, 1.0)
  threshold: str = "none"
  percentile: float = 0.995
  bound: float = 1.0
  strength: float = 1.0

  def __post_init__(self):
    for name, known in (("method", METHODS), ("spacing", SPACINGS), ("threshold", THRESHOLDS)):
      if getattr(self, name) not in known:
        raise UserError(f"{name} is one of {', '.join(known)}, not {getattr(self, name)!r}")
    for name in ("eta", "variance", "guidance_rescale", "percentile", "strength"):
      if not 0 <= getattr(self, name) <= 1:
        raise UserError(f"{name} must be in 0 … 1, not {getattr(self, name)}")
    if self.num_steps < 1:
      raise UserError(f"num_steps must be at least 1, not {self.num_steps}")
    if len(self.guidance_interval) != 2 or not (
      0 <= self.guidance_interval[0] <= self.guidance_interval[1] <= 1
    ):
      raise UserError(
        f"guidance_interval is two numbers that rise in 0 … 1, not {self.guidance_interval}"
      )


class Plan(NamedTuple):
  """The steps of a sampler; arrays `[steps]`."""

  t: np.ndarray
  step: Step


def plan(process: Process, sampler: Sampler) -> Plan:
  """The steps from the strength's level on.

  Raises:
    UserError: of `diffusion.spaced`.
  """
  solver = sampler.method == "dpm_solver"
  t = diffusion.spaced(
    process, sampler.num_steps, sampler.spacing, sampler.offset, ends_between=solver
  )
  if (sampler.method, sampler.spacing) == ("euler", "linspace"):
    # Between steps too, as in diffusers.
    t = np.linspace(process.timesteps - 1, 0, len(t))
  t = t[len(t) - int(len(t) * sampler.strength) :]
  alpha, sigma = process.levels_at(t)
  if sampler.method in ("dpm_solver", "euler"):
    alpha = np.maximum(alpha, LEAST_ALPHA)
  end = (1.0, 0.0) if process.ends_clean else (process.levels.alpha[0], process.levels.sigma[0])
  after = Level(*(np.append(x[1:], e) for x, e in zip((alpha, sigma), end)))
  beta = 1 - (alpha / after.alpha) ** 2
  now = Level(alpha, sigma)
  return Plan(t.astype(np.float32), Step(now, after, beta, beta * (after.sigma / sigma) ** 2))


def ddim_step(x: Images, found: Prediction, step: Step, eta: float, noise: Images) -> Images:
  """√ᾱ_s x₀ + √(1 − ᾱ_s − σ²) ε + σ z, σ = η √β̃ (eq. 12 and 16)."""
  alpha, sigma = step.after.like(x)
  variance = eta**2 * step.beta_tilde
  return (
    alpha * found.x0
    + jnp.sqrt((sigma**2 - variance).clip(0)) * found.eps
    + jnp.sqrt(variance) * noise
  )


def ancestral_step(
  x: Images, found: Prediction, step: Step, variance: float, noise: Images
) -> Images:
  """A draw of p(x_s | x_t) (DDPM, algorithm 2); none at the end."""
  v = jnp.full_like(x, variance) if found.variance is None else found.variance
  deviation = jnp.exp(0.5 * diffusion.log_variance(step, v))
  last = step.after.sigma == 0
  return diffusion.posterior_mean(x, found.x0, step) + jnp.where(last, 0.0, deviation) * noise


def euler_step(x: Images, found: Prediction, step: Step) -> Images:
  """d(x/α) = ε d(σ/α)."""
  (alpha, sigma), (alpha_s, sigma_s) = step.now, step.after
  return alpha_s * (x / alpha + found.eps * (sigma_s / alpha_s - sigma / alpha))


def dpm_solver_step(
  x: Images, x0: Images, before: Images, step: Step, last: Level, first: jax.Array
) -> Images:
  """One of DPM-Solver++(2M): with the slope of x₀ from the step before, in λ = ln α/σ.

  Args:
    x: x_t.
    x0: said of it.
    before: said at the step before.
    step: from t to s.
    last: level of the step before.
    first: whether there is no step before, or none after: then it is of order 1.
  """
  (alpha, sigma), (alpha_s, sigma_s) = step.now, step.after
  log_snr = lambda alpha, sigma: jnp.log(alpha) - jnp.log(sigma)
  # e^−h: 0 where the image is reached.
  shrinks = sigma_s * alpha / (alpha_s * sigma)
  h = -jnp.log(jnp.where(sigma_s == 0, 1.0, shrinks))
  ratio = (log_snr(alpha, sigma) - log_snr(*last)) / jnp.where(h == 0, 1.0, h)
  slope = jnp.where(first, 0.0, 0.5 / jnp.where(first, 1.0, ratio))
  return sigma_s / sigma * x + alpha_s * (1 - shrinks) * (x0 + slope * (x0 - before))


def noise(seeds: Int[Array, " batch"], index: int | jax.Array, shape: tuple[int, ...]) -> Images:
  """Noise `index` of each row, of this shape each."""
  return jax.vmap(
    lambda seed: jax.random.normal(jax.random.fold_in(jax.random.key(seed), index), shape)
  )(seeds)


def sample(
  denoise: Denoise,
  guided: Denoise,
  process: Process,
  sampler: Sampler,
  seeds: Int[Array, " batch"],
  shape: tuple[int, int, int],
  *,
  start: Images | None = None,
  mask: Float[Array, "batch height width 1"] | None = None,
  film: bool = False,
) -> tuple[Images, Float[Array, "steps batch height width channels"] | None]:
  """(images, with `film` what the network took them for at each step, the last the images themselves).

  Args:
    denoise: without guidance.
    guided: with it; called in the sampler's interval alone.
    process: that the network was trained for.
    sampler: how.
    seeds: of each row.
    shape: of an image.
    start: images to start from, for a strength below 1, or to be kept where the mask is 0.
    mask: 1 where something new is wanted.
    film: whether to give it.

  Raises:
    UserError: where the sampler does not fit the process, or starts from an image that is not given.
  """
  if start is None and (mask is not None or sampler.strength < 1):
    raise UserError("a strength below 1, or a mask, needs an image to start from")
  t, steps = plan(process, sampler)
  drawn = noise(seeds, 0, shape)
  if not len(t):
    return start, start[None] if film else None
  x = (
    drawn
    if sampler.strength == 1
    else diffusion.add_noise(start, drawn, jax.tree.map(lambda v: v[0], steps.now))
  )
  low, high = (bound * process.timesteps for bound in sampler.guidance_interval)
  guides = (low <= t) & (t <= high) if sampler.guidance_scale != 1 else np.zeros(len(t), bool)
  last = Level(*(np.append(v[:1], v[:-1]) for v in steps.now))
  index = np.arange(len(t))
  first = (index == 0) | (steps.after.sigma == 0)
  draws = sampler.method == "ancestral" or (sampler.method == "ddim" and sampler.eta > 0)

  def one(carry, now):
    x, before = carry
    index, t, step, last, first, guide = now
    rows = jnp.full(len(x), t)
    if guides.all() or not guides.any():
      output = (guided if guides.any() else denoise)(x, rows)
    else:
      output = jax.lax.cond(guide, guided, denoise, x, rows)
    found = diffusion.predict(process, output.astype(jnp.float32), x, step.now)
    found = guidance.threshold(
      found, x, step.now, sampler.threshold, sampler.percentile, sampler.bound
    )
    z = noise(seeds, index + 1, shape) if draws else jnp.zeros(())
    match sampler.method:
      case "ancestral":
        x = ancestral_step(x, found, step, sampler.variance, z)
      case "ddim":
        x = ddim_step(x, found, step, sampler.eta, z)
      case "euler":
        x = euler_step(x, found, step)
      case _:
        x = dpm_solver_step(x, found.x0, before, step, last, first)
    if mask is not None:
      x = mask * x + (1 - mask) * diffusion.add_noise(start, drawn, step.after)
    if tells_steps():  # a value of x, so that it waits for the step
      jax.debug.callback(_tell, index + 1, len(guides), x[0, 0, 0, 0])
    return (x, found.x0), found.x0 if film else None

  f32 = lambda tree: jax.tree.map(lambda v: jnp.asarray(v, jnp.float32), tree)
  xs = (
    jnp.asarray(index),
    jnp.asarray(t),
    f32(steps),
    f32(last),
    jnp.asarray(first),
    jnp.asarray(guides),
  )
  (x, _), shown = jax.lax.scan(one, (x, jnp.zeros_like(x)), xs)
  return x, shown.at[-1].set(x) if film else None


def invert(
  denoise: Denoise, process: Process, sampler: Sampler, x: Images, *, iterations: int = 3
) -> Images:
  """The noise from which DDIM with η = 0 makes this image (Song et al., §4.3).

  A step back asks for ε at the noisier end, which is sought: x_t is put in again `iterations` times.

  Args:
    denoise: (x_t, t `[B]`) → the network's output.
    process: that the network was trained for.
    sampler: of which `num_steps`, `spacing`, `offset` count.
    x: images.
    iterations: of each step.
  """
  t, steps = plan(process, dataclasses.replace(sampler, method="ddim", strength=1.0))

  def one(x, now):
    t, step = now
    (alpha, sigma), (alpha_s, sigma_s) = step.now, step.after

    def closer(_, noisy):
      found = diffusion.predict(process, denoise(noisy, jnp.full(len(x), t)), noisy, step.now)
      # Either says x_t; where there is much noise x₀ moves little with x_t, where there is little ε does.
      by_x0 = sigma / sigma_s * x + (alpha - sigma / sigma_s * alpha_s) * found.x0
      by_eps = alpha / alpha_s * x + (sigma - alpha / alpha_s * sigma_s) * found.eps
      return jnp.where(sigma_s > alpha_s, by_x0, by_eps)

    return jax.lax.fori_loop(0, iterations, closer, x), None

  backward = jax.tree.map(lambda v: jnp.asarray(v)[::-1], (t, jax.tree.map(np.float32, steps)))
  return jax.lax.scan(one, x, backward)[0]
