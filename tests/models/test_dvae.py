"""The discrete VAE: published counts and schedules, its likelihood and divergence, relaxed and
hard codes.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import contract
from vlx.models.generation import dvae
from vlx.models.generation.dvae import DVAE

SMALL = dict(image_size=16, width=8, num_codes=10, code_dim=6, num_groups=3, blocks_per_group=1)


def normal(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def started(**fields):
  system, batch = DVAE(**{**SMALL, **fields}), {"image": jnp.tanh(normal(3, 16, 16, 3))}
  return system, contract.init(system), batch


def test_published_parameters():
  """Those of the released encoder and decoder."""
  system = DVAE(**dvae.published_size())
  params = contract.shapes(system)["params"]
  count = lambda half: sum(x.size for x in jax.tree.leaves(params[half]))
  assert (count("encoder"), count("decoder"), system.grid) == (53_786_240, 43_829_766, (32, 32))


def test_published_schedules():
  system = DVAE(**dvae.published_size())
  tau = lambda step: dvae.cosine(step, 1.0, system.temperature, system.temperature_steps)
  beta = lambda step: dvae.cosine(step, 0.0, system.beta, system.beta_steps)
  found = [tau(0), tau(75_000), tau(150_000), tau(10**9)]
  np.testing.assert_allclose(found, [1, 17 / 32, 1 / 16, 1 / 16], rtol=1e-5)
  np.testing.assert_allclose(
    [beta(0), beta(2_500), beta(5_000), beta(10**9)], [0, 3.3, 6.6, 6.6], atol=1e-5
  )


@pytest.mark.parametrize("mu, log_b", [(0.0, 0.0), (1.5, -1.0), (-2.0, -0.5)])
def test_logit_laplace_is_a_density_with_its_median_at_the_sigmoid_of_mu(mu, log_b):
  edges = np.linspace(0, 1, 200_001)
  x = (edges[1:] + edges[:-1]) / 2
  log_density = dvae.logit_laplace(jnp.asarray(x), jnp.full(x.shape, mu), jnp.full(x.shape, log_b))
  density = np.exp(np.asarray(log_density))
  mass = np.cumsum(density) / len(x)
  np.testing.assert_allclose(mass[-1], 1.0, atol=2e-3)
  np.testing.assert_allclose(np.interp(0.5, mass, x), 1 / (1 + np.exp(-mu)), atol=2e-3)


def test_divergence_from_uniform():
  halves = jnp.log(jnp.array([0.5, 0.5] + [1e-30] * 6))
  found = dvae.kl_from_uniform(jnp.stack([jnp.zeros(8), 1e3 * jnp.eye(8)[3], halves]))
  np.testing.assert_allclose(found, [0.0, np.log(8), np.log(4)], atol=1e-5)


def test_pixels_there_and_back():
  image = jnp.tanh(normal(2, 4, 4, 3))
  x = dvae.map_pixels(image)
  np.testing.assert_allclose(dvae.map_pixels(jnp.array([-1.0, 1.0])), [0.1, 0.9], atol=1e-6)
  np.testing.assert_allclose(dvae.unmap_pixels(x), image, atol=1e-6)


def test_hard_codes_are_the_limit_of_relaxed_ones():
  system, variables, batch = started()
  apply = jax.jit(system._apply, static_argnums=1)
  ids = jax.jit(system.image_to_tokens)(variables, batch["image"])
  soft = apply(variables, "decode", jax.nn.one_hot(ids, system.num_codes))
  hard = apply(variables, "decode", ids)
  np.testing.assert_allclose(soft, hard, atol=1e-5)
  assert ids.shape == (3, 4, 4) and hard.shape == (3, 16, 16, 6)


@pytest.mark.parametrize("min_scale", [0.0, 0.3])
def test_loss_by_hand(min_scale):
  """(NLL + β·KL) / colors, with the noise of the same key; the schedules at step 5."""
  system, variables, batch = started(
    beta=2.0, beta_steps=10, temperature_steps=10, min_scale=min_scale
  )
  rng = jax.random.key(3)
  value = lambda p: contract.loss(
    system, {"params": p, "state": {}}, batch, rng, step=5, train=True
  )
  (loss, aux), gradients = jax.jit(jax.value_and_grad(value, has_aux=True))(variables["params"])
  beta, tau = 1.0, (1 + 1 / 16) / 2
  x = 0.8 * (np.asarray(batch["image"]) + 1) / 2 + 0.1
  apply = jax.jit(system._apply, static_argnums=1)
  logits = np.asarray(apply(variables, "encode", jnp.asarray(x)))
  noisy = (logits + np.asarray(jax.random.gumbel(rng, logits.shape))) / tau
  weights = np.exp(noisy) / np.exp(noisy).sum(-1, keepdims=True)
  mu, log_b = np.split(np.asarray(apply(variables, "decode", jnp.asarray(weights))), 2, -1)
  b = min_scale + np.exp(log_b)
  nll = np.abs(np.log(x / (1 - x)) - mu) / b + np.log(2 * b * x * (1 - x))
  q = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  kl = (q * np.log(q * 10)).sum((1, 2, 3)).mean()
  nll = nll.sum((1, 2, 3)).mean()
  np.testing.assert_allclose([aux.metrics["nll"], aux.metrics["kl"]], [nll, kl], rtol=1e-4)
  np.testing.assert_allclose(loss, (nll + beta * kl) / (16 * 16 * 3), rtol=1e-4)
  assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(gradients))
