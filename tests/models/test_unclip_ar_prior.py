"""unCLIP's autoregressive prior."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import contract
from tests.models.test_unclip import SEEN, batch, text_of
from vlx.models.generation.unclip_ar_prior import (
  ARPriorNetwork,
  ARPriorSampler,
  AutoregressivePrior,
  Measured,
  from_codes,
  measure,
  to_codes,
)

BUCKETS, NUMBERS = 32, 5
SYSTEM = AutoregressivePrior(
  clip=SEEN,
  network=ARPriorNetwork(
    numbers=NUMBERS, buckets=BUCKETS, products=4, text_length=6, width=8, depth=2, num_heads=2,
    mlp_dim=16,
  ),
  image_size=16,
  measured_by=3,
)  # fmt: skip


def units(count, dim, seed):
  x = np.random.default_rng(seed).normal(size=(count, dim)) * (1 + np.arange(dim))
  return jnp.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), jnp.float32)


@pytest.fixture(scope="module")
def found():
  return measure(units(500, 6, 0), units(500, 6, 1), 4, 5)


def test_axes_are_principal(found):
  z = units(500, 6, 0)
  np.testing.assert_allclose(found.axes.T @ found.axes, np.eye(4), atol=1e-5)
  turned = np.asarray((z - found.mean) @ found.axes)
  spread = np.cov(turned.T, bias=True)
  np.testing.assert_allclose(spread, np.diag(np.diag(spread)), atol=1e-5)
  assert (np.diff(np.diag(spread)) < 0).all()
  total = np.trace(np.cov(np.asarray(z).T, bias=True))
  assert found.kept == pytest.approx(np.trace(spread) / total, rel=1e-4)
  assert measure(z, z, 6, 5).kept == pytest.approx(1, abs=1e-5)


def test_what_is_quantised_comes_back_within_half_a_bucket(found):
  z = units(500, 6, 0)
  codes = to_codes(found, z, BUCKETS)
  assert codes.min() == 0 and codes.max() == BUCKETS - 1
  turned = lambda z: np.asarray((z - found.mean) @ found.axes)
  width = np.asarray(found.high - found.low) / BUCKETS
  off = np.abs(turned(from_codes(found, codes, BUCKETS)) - turned(z)) / width
  assert 0.45 < off.max() < 0.5 + 1e-3
  np.testing.assert_array_equal(to_codes(found, from_codes(found, codes, BUCKETS), BUCKETS), codes)


def test_products_are_equally_frequent(found):
  products = np.sum(units(500, 6, 0) * units(500, 6, 1), axis=1)
  buckets = np.searchsorted(found.products, products)
  np.testing.assert_allclose(np.bincount(buckets), 100, atol=1)


@pytest.fixture(scope="module")
def prior():
  variables = contract.drawn(SYSTEM, 0.8)
  variables["params"]["head"]["bias"] *= 0.0  # else one bucket is the likeliest everywhere
  return variables


def test_sampling_with_a_cache_is_the_network_read_at_once(prior):
  inputs = text_of(batch())
  sample = jax.jit(
    lambda v: SYSTEM.sample_image_embeddings(v, inputs, jnp.arange(4), ARPriorSampler(0.0))
  )
  measured = Measured(**prior["state"]["measured"])
  codes = to_codes(measured, sample(prior), BUCKETS)
  drawn = [
    jax.random.randint(jax.random.fold_in(jax.random.key(seed), NUMBERS), (), 2, 4)
    for seed in range(4)
  ]
  logits = SYSTEM.network.apply(
    {"params": SYSTEM._own(prior)["params"]},
    *SYSTEM._text(prior, inputs, True),
    jnp.stack(drawn),
    codes,
  )
  np.testing.assert_array_equal(logits.argmax(-1), codes)
  assert len(set(map(tuple, np.asarray(codes)))) > 1


def test_it_is_prepared_and_learns(prior):
  keys = jax.random.split(jax.random.key(3), 3)
  batches = [
    {**batch(), "image": jax.random.uniform(key, (4, 16, 16, 3), minval=-1)} for key in keys
  ]
  variables = SYSTEM.prepare(prior, batches, jax.random.key(0))

  def loss(own):
    params = {**variables["params"], **own}
    terms, _ = SYSTEM.loss(
      {**variables, "params": params}, batches[0], jax.random.key(0), step=0, train=True,
      frozen=frozenset(),
    )  # fmt: skip
    return terms["bucket"].mean

  own = {name: x for name, x in variables["params"].items() if name != "clip"}
  value, gradients = jax.jit(jax.value_and_grad(loss))(own)
  assert 0.5 * np.log(BUCKETS) < value < 3 * np.log(BUCKETS)
  assert all(x.any() for x in jax.tree.leaves(gradients))
