"""Diffusion where the exact answer is known: data that are Gaussian, or a mixture of two Gaussians."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlx.core.errors import UserError
from vlx.inference import diffusion, guidance, samplers
from vlx.inference.diffusion import Level, Prediction, Process, Step
from vlx.inference.samplers import Sampler
from vlx.losses import diffusion as losses

MEAN = np.array([0.3, -0.5], np.float32)
COVARIANCE = np.array([[0.5, 0.2], [0.2, 0.3]], np.float32)
SEEDS = jnp.arange(4000)
SHAPE = (1, 1, 2)


VARIANCES, AXES = np.linalg.eigh(COVARIANCE)


def gaussian(x, level):
  """E[x₀ | x_t] of the Gaussian data."""
  alpha, sigma = (jnp.asarray(v, jnp.float32).reshape(-1, 1) for v in level)
  along = (x.reshape(len(x), 2) - alpha * MEAN) @ AXES
  along = along * alpha * VARIANCES / (alpha**2 * VARIANCES + sigma**2)
  return (MEAN + along @ AXES.T).reshape(x.shape).astype(x.dtype)


CENTERS, SPREAD, SHARES = (
  np.array([[-0.8, 0.0], [0.7, 0.5]], np.float32),
  0.2,
  np.array([0.3, 0.7], np.float32),
)


def log_density(x, level, components=(0, 1)):
  """ln p(x_t), up to a constant, of some components of the mixture."""
  alpha, sigma = (jnp.asarray(v, jnp.float32).reshape(-1)[:, None] for v in level)
  variance = (alpha * SPREAD) ** 2 + sigma**2
  flat = x.reshape(len(x), 2)
  each = [
    np.log(SHARES[k])
    - ((flat - alpha * CENTERS[k]) ** 2).sum(-1) / (2 * variance[:, 0])
    - jnp.log(variance[:, 0])
    for k in components
  ]
  return jax.scipy.special.logsumexp(jnp.stack(each), axis=0)


def mixture(x, level):
  """E[x₀ | x_t] of the mixture, by Tweedie's formula."""
  alpha, sigma = Level(*level).like(x)
  score = jax.grad(lambda x: log_density(x, level).sum())(x)
  return (x + sigma**2 * score) / alpha


def network(process, x0_of):
  """A network that is right."""

  def denoise(x, t):
    level = process.level(t.astype(int))
    x0 = x0_of(x, level)
    found = diffusion.target(process.prediction, x0, diffusion.eps_of(x, x0, level), level)
    return found

  return denoise


def sampled(process, sampler, x0_of, seeds=SEEDS):
  denoise = network(process, x0_of)
  run = jax.jit(lambda seeds: samplers.sample(denoise, denoise, process, sampler, seeds, SHAPE)[0])
  return np.asarray(run(seeds)).reshape(-1, 2)


COSINE_V = dict(schedule="cosine", prediction="v")
WAYS = [
  (Process(), Sampler(200)),
  (Process(prediction="x0"), Sampler(200, eta=1.0, spacing="linspace")),
  (Process("linear", 250, 4e-4, 0.08), Sampler(250, "ancestral", variance=1.0)),
  (Process(timesteps=250, **COSINE_V), Sampler(250, "ancestral")),
  (Process(**COSINE_V), Sampler(60, "dpm_solver")),
  (
    Process("scaled_linear", 1000, 0.00085, 0.012, zero_terminal_snr=True, prediction="v"),
    Sampler(200),
  ),
  (Process(**COSINE_V), Sampler(200, "euler", spacing="leading", offset=1)),
]


@pytest.mark.parametrize("process, sampler", WAYS, ids=lambda x: getattr(x, "method", None))
def test_samplers_give_the_mean_and_covariance_of_a_gaussian(process, sampler):
  x = sampled(process, sampler, gaussian)
  np.testing.assert_allclose(x.mean(0), MEAN, atol=4 * 0.7 / len(x) ** 0.5)
  # The deviation of an estimated covariance, and 2 % of discretisation.
  np.testing.assert_allclose(np.cov(x.T), COVARIANCE, atol=4 * 0.5 * (2 / len(x)) ** 0.5 + 0.01)


@pytest.mark.parametrize("process, sampler", WAYS[::2], ids=lambda x: getattr(x, "method", None))
def test_samplers_give_a_mixture(process, sampler):
  x = sampled(process, sampler, mixture)
  of_second = np.linalg.norm(x[:, None] - CENTERS, axis=-1).argmin(1) == 1
  assert abs(of_second.mean() - SHARES[1]) < 4 * (0.21 / len(x)) ** 0.5 + 0.005
  for k, mine in enumerate((x[~of_second], x[of_second])):
    np.testing.assert_allclose(mine.mean(0), CENTERS[k], atol=4 * SPREAD / len(mine) ** 0.5 + 0.005)
    np.testing.assert_allclose(mine.std(0), SPREAD, rtol=0.1)


def solve(step_of, count, x):
  """Steps of a sampler between two levels, even in λ = ln α/σ, for the Gaussian data."""
  levels = np.linspace(-3.0, 3.0, count + 1)  # λ
  alpha, sigma = (1 / np.sqrt(1 + np.exp(sign * 2 * levels)) for sign in (-1, 1))
  before = jnp.zeros_like(x)
  for i in range(count):
    now, after = (Level(alpha[j], sigma[j]) for j in (i, i + 1))
    x0 = gaussian(x, now)
    found = Prediction(x0, diffusion.eps_of(x, x0, now))
    step = Step(now, after, 0.0, 0.0)
    last = Level(alpha[max(i - 1, 0)], sigma[max(i - 1, 0)])
    x, before = step_of(x, found, before, step, last, i == 0), x0
  return np.asarray(x)


DDIM = lambda x, found, before, step, last, first: samplers.ddim_step(x, found, step, 0.0, 0.0)
SOLVER = lambda x, found, before, step, last, first: samplers.dpm_solver_step(
  x, found.x0, before, step, last, jnp.asarray(first)
)


@pytest.mark.parametrize("step_of, order", [(DDIM, 1), (SOLVER, 2)], ids=["ddim", "dpm_solver"])
def test_the_order_of_convergence(step_of, order):
  with jax.enable_x64(True):
    alpha, sigma = (1 / np.sqrt(1 + np.exp(sign * 6.0)) for sign in (1, -1))
    deviation = lambda a, s: np.sqrt(a**2 * VARIANCES + s**2)
    along = np.array([[1.3, -0.4]])
    # The flow keeps each point at its quantile.
    start = alpha * MEAN + along * deviation(alpha, sigma) @ AXES.T
    exact = sigma * MEAN + along * deviation(sigma, alpha) @ AXES.T
    errors = [
      np.abs(solve(step_of, n, jnp.asarray(start).reshape(1, *SHAPE)).reshape(1, 2) - exact).max()
      for n in (40, 80)
    ]
  assert errors[1] < errors[0] and abs(np.log2(errors[0] / errors[1]) - order) < 0.15


def test_euler_is_ddim_without_noise():
  process = Process("linear", 100, 1e-3, 0.2)
  ddim, euler = (
    sampled(process, Sampler(20, method), gaussian, SEEDS[:50]) for method in ("ddim", "euler")
  )
  np.testing.assert_allclose(ddim, euler, atol=1e-4)


@pytest.mark.parametrize("process", [Process(), Process(**COSINE_V)], ids=["eps", "v"])
def test_inversion_finds_the_noise_that_gives_the_image(process):
  image = jnp.asarray(np.random.default_rng(0).normal(MEAN, 0.5, (50, *SHAPE)), jnp.float32)
  denoise, sampler = network(process, gaussian), Sampler(100)
  found = samplers.invert(denoise, process, sampler, image)
  assert np.abs(found - image).max() > 0.5
  plan = samplers.plan(process, sampler)
  x = found
  for i, t in enumerate(plan.t):
    step = jax.tree.map(lambda v: jnp.float32(v[i]), plan.step)
    output = diffusion.predict(process, denoise(x, jnp.full(len(x), t)), x, step.now)
    x = samplers.ddim_step(x, output, step, 0.0, 0.0)
  np.testing.assert_allclose(x, image, atol=1e-3)


def test_zero_terminal_snr_leaves_nothing_of_the_image():
  process = Process("scaled_linear", 1000, 0.00085, 0.012, zero_terminal_snr=True, prediction="v")
  alpha, sigma = process.levels
  assert alpha[-1] == 0 and sigma[-1] == 1
  before = Process("scaled_linear", 1000, 0.00085, 0.012).levels
  np.testing.assert_allclose(alpha[0], before.alpha[0])
  with pytest.raises(ValueError, match="zero_terminal_snr takes prediction v or x0"):
    Process(zero_terminal_snr=True)


def test_published_schedules():
  assert Process().levels.alpha[-1] ** 2 == pytest.approx(4.04e-5, rel=2e-3)
  assert Process("scaled_linear", 1000, 0.00085, 0.012).levels.alpha[-1] ** 2 == pytest.approx(
    0.00466, rel=1e-3
  )
  assert Process(schedule="cosine").betas.max() == 0.999


def test_the_bound_of_a_gaussian_is_its_entropy():
  """The reverse step of independent Gaussian numbers is Gaussian: with its mean and variance nothing is lost."""
  deviation = 0.25
  process = Process(timesteps=200, schedule="cosine", learned_variance=True)
  steps = process.steps

  def denoise(x, t):
    now, after = process.level(t).like(x), process.step(t).after.like(x)
    marginal = now.alpha**2 * deviation**2 + now.sigma**2
    x0 = now.alpha * deviation**2 / marginal * x
    beta = jnp.asarray(steps.beta, jnp.float32)[t][:, None, None, None]
    variance = beta * (after.alpha**2 * deviation**2 + after.sigma**2) / marginal
    ln = [
      jnp.asarray(np.log(v), jnp.float32)[t][:, None, None, None]
      for v in (steps.beta, steps.beta_tilde)
    ]
    v = (jnp.log(variance) - ln[1]) / (ln[0] - ln[1])
    return jnp.concatenate([diffusion.eps_of(x, x0, now), 2 * v * jnp.ones_like(x) - 1], axis=-1)

  drawn = np.random.default_rng(0).normal(0, deviation, (2000, 1, 2, 4)).clip(-1, 1)
  x0 = jnp.asarray(np.round((drawn + 1) * 127.5) / 127.5 - 1, jnp.float32)
  bits = losses.bound_bits(denoise, process, x0, jax.random.key(0))
  entropy = (0.5 * np.log(2 * np.pi * np.e * deviation**2) - np.log(2 / 255)) / np.log(2)
  assert abs(bits.mean() - entropy) < 3 * bits.std() / len(bits) ** 0.5 + 0.01
  worse = losses.bound_bits(lambda x, t: 0.9 * denoise(x, t), process, x0, jax.random.key(0))
  assert worse.mean() > bits.mean() + 0.02


def test_a_pixel_of_256_values_has_the_probability_one():
  values = jnp.asarray(np.arange(256) / 127.5 - 1, jnp.float32).reshape(256, 1, 1, 1)
  for mean, log_variance in ((0.1, -3.0), (-0.97, -9.0), (3.0, -2.0), (0.996, -12.0)):
    probabilities = jnp.exp(losses.pixel_log_likelihood(values, mean, jnp.asarray(log_variance)))
    assert probabilities.sum() == pytest.approx(1, abs=1e-4)
  gradient = jax.grad(lambda m: losses.pixel_log_likelihood(values, m, jnp.asarray(-14.0)).sum())(
    0.9
  )
  assert np.isfinite(gradient)


@pytest.mark.parametrize("prediction", diffusion.PREDICTIONS)
def test_weights_make_every_prediction_the_same_loss(prediction):
  process = Process(prediction=prediction)
  key = jax.random.key(0)
  x0, eps, wrong = (jax.random.normal(k, (16, 2, 2, 3)) for k in jax.random.split(key, 3))
  t = jnp.arange(16) * 60 + 20
  level = process.level(t.astype(int))
  x = diffusion.add_noise(x0, eps, level)
  guess = x0 + 0.1 * wrong
  output = diffusion.target(prediction, guess, diffusion.eps_of(x, guess, level), level)
  found = diffusion.predict(process, output, x, level)
  np.testing.assert_allclose(found.x0, guess, atol=2e-3)
  term = losses.squared_error(process, output, x0, eps, t, losses.weights(process, "min_snr"))
  expected = (np.minimum(process.snr, 5)[t] * 0.01 * np.square(wrong).mean((1, 2, 3))).mean()
  assert term.mean == pytest.approx(expected, rel=1e-3)
  bound = losses.squared_error(process, output, x0, eps, t, losses.weights(process, "vlb"))
  bits = losses.step_bits(process, found, x0, x, t)
  assert bound.mean == pytest.approx(float(bits.mean()) * np.log(2), rel=5e-3)


def test_the_hybrid_loss_moves_the_variance_alone():
  process = Process(learned_variance=True)
  x0, output = (
    jax.random.normal(jax.random.key(i), (4, 2, 2, c)) * 0.3 for i, c in ((0, 3), (1, 6))
  )
  t = jnp.array([0, 3, 500, 999])
  x = diffusion.add_noise(x0, jax.random.normal(jax.random.key(2), x0.shape), process.level(t))
  gradient = jax.grad(lambda out: losses.hybrid_term(process, out, x0, x, t).sum)(output)
  assert np.abs(gradient[..., :3]).max() == 0 and (np.abs(gradient[1:3, ..., 3:]) > 0).all()


def test_guidance_by_the_exact_classifier_gives_the_class():
  process = Process()

  def denoise(x, t):
    level = process.level(t.astype(int))
    x0 = mixture(x, level)
    classifier = lambda x: log_density(x, level, (0,)) - log_density(x, level)
    found = Prediction(x0, diffusion.eps_of(x, x0, level))
    return guidance.by_classifier(found, x, level, classifier, 1.0).eps

  run = jax.jit(
    lambda seeds: samplers.sample(denoise, denoise, process, Sampler(200), seeds, SHAPE)[0]
  )
  x = np.asarray(run(SEEDS[:1000])).reshape(-1, 2)
  np.testing.assert_allclose(x.mean(0), CENTERS[0], atol=4 * SPREAD / 1000**0.5 + 0.005)
  np.testing.assert_allclose(x.std(0), SPREAD, rtol=0.1)


def test_classifier_free_guidance_is_linear_and_rescaling_keeps_the_deviation():
  given, without = (jax.random.normal(jax.random.key(i), (3, 4, 4, 2)) for i in (0, 1))
  np.testing.assert_allclose(guidance.guide(given, without, 1.0), given, atol=1e-6)
  np.testing.assert_allclose(
    guidance.guide(given, without, 3.0), 3 * given - 2 * without, atol=1e-5
  )
  rescaled = guidance.guide(given, without, 3.0, 1.0)
  np.testing.assert_allclose(rescaled.std((1, 2, 3)), given.std((1, 2, 3)), rtol=1e-5)


def test_guidance_in_an_interval_alone():
  process, calls = Process(), []

  def guided(x, t):
    jax.debug.callback(lambda t: calls.append(int(t)), t[0])
    return jnp.zeros_like(x)

  sampler = Sampler(10, guidance_scale=2.0, guidance_interval=(0.2, 0.6))
  samplers.sample(lambda x, t: jnp.zeros_like(x), guided, process, sampler, SEEDS[:2], SHAPE)
  jax.effects_barrier()
  assert sorted(calls) == [299, 399, 499, 599]


def test_thresholds():
  level, x = Level(0.8, 0.6), jnp.zeros((1, 1, 5, 1))
  x0 = jnp.array([-2.0, -0.5, 0.0, 1.5, 4.0]).reshape(x.shape)
  found = Prediction(x0, diffusion.eps_of(x, x0, level))
  clipped = guidance.threshold(found, x, level, "static", 1.0)
  np.testing.assert_allclose(clipped.x0.ravel(), [-1, -0.5, 0, 1, 1])
  np.testing.assert_allclose(0.8 * clipped.x0 + 0.6 * clipped.eps, x, atol=1e-6)
  dynamic = guidance.threshold(found, x, level, "dynamic", 0.75)
  np.testing.assert_allclose(dynamic.x0.ravel(), [-1, -0.25, 0, 0.75, 1])
  assert guidance.threshold(found, x, level, "none", 1.0) is found


def test_an_image_is_a_function_of_its_seed_whatever_the_batch():
  process, sampler = Process(), Sampler(5, eta=1.0)
  np.testing.assert_allclose(
    sampled(process, sampler, gaussian, SEEDS[:6])[3:4],
    sampled(process, sampler, gaussian, SEEDS[3:4]),
    atol=1e-6,
  )


def test_strength_and_mask_keep_the_given_image():
  process = Process()
  denoise = network(process, gaussian)
  start = jnp.asarray(np.random.default_rng(0).normal(0, 0.5, (8, 1, 2, 2)), jnp.float32)
  flat = lambda x, t: denoise(x.reshape(-1, *SHAPE), jnp.repeat(t, 2)).reshape(x.shape)
  run = lambda sampler, **given: samplers.sample(
    flat, flat, process, sampler, SEEDS[:8], (1, 2, 2), **given
  )[0]
  np.testing.assert_array_equal(run(Sampler(10, strength=0.0), start=start), start)
  near, far = (np.abs(run(Sampler(20, strength=s), start=start) - start).mean() for s in (0.1, 0.9))
  assert 0 < near < far / 2
  mask = jnp.zeros((8, 1, 2, 1)).at[:, :, 1].set(1.0)
  painted = run(Sampler(10), start=start, mask=mask)
  np.testing.assert_allclose(painted[:, :, 0], start[:, :, 0], atol=1e-6)
  assert np.abs(painted[:, :, 1] - start[:, :, 1]).min() > 1e-3
  with pytest.raises(UserError, match="needs an image to start from"):
    run(Sampler(10), mask=mask)


def test_the_film_ends_with_the_image():
  process = Process()
  denoise = network(process, gaussian)
  x, film = samplers.sample(denoise, denoise, process, Sampler(7), SEEDS[:2], SHAPE, film=True)
  assert film.shape == (7, 2, *SHAPE)
  np.testing.assert_array_equal(film[-1], x)


@pytest.mark.parametrize(
  "fields, message",
  [
    (dict(guidance_interval=(0.5,)), "guidance_interval is two numbers that rise in 0 … 1"),
    (dict(num_steps=0), "num_steps must be at least 1, not 0"),
    (dict(num_steps=1001), "num_steps must be at most 1000, the steps of the process, not 1001"),
    (dict(method="heun"), "method is one of ddim, ancestral, dpm_solver, euler, not 'heun'"),
    (dict(strength=1.5), "strength must be in 0 … 1, not 1.5"),
    (dict(guidance_interval=(0.7, 0.2)), r"rise in 0 … 1, not \(0.7, 0.2\)"),
    (dict(spacing="leading", offset=500), "an offset of 500 leads beyond the 1000 steps"),
  ],
)
def test_samplers_that_make_no_sense_are_told(fields, message):
  with pytest.raises(UserError, match=message):
    samplers.plan(Process(), Sampler(**fields))
