"""The contrastive losses against float64 by hand, and whole against spread over devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from vlx.core import partition
from vlx.losses import contrastive as losses


def embeddings(batch=16, dim=8, seed=0):
  rng = np.random.default_rng(seed)
  return rng.normal(size=(batch, dim)), rng.normal(size=(batch, dim))


def info_nce_float64(x, y, scale):
  """The definition, in numpy: value and gradient to x, by the softmax's closed form."""
  xn = x / np.linalg.norm(x, axis=1, keepdims=True)
  yn = y / np.linalg.norm(y, axis=1, keepdims=True)
  logits = scale * xn @ yn.T
  rows = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  columns = np.exp(logits) / np.exp(logits).sum(0, keepdims=True)
  n = len(x)
  value = -0.5 * (np.log(np.diag(rows)).mean() + np.log(np.diag(columns)).mean())
  d_logits = 0.5 * (rows - np.eye(n) + columns - np.eye(n)) / n
  d_xn = scale * d_logits @ yn
  # Through x/‖x‖: the part along xn vanishes.
  d_x = (d_xn - (d_xn * xn).sum(1, keepdims=True) * xn) / np.linalg.norm(x, axis=1, keepdims=True)
  return value, d_x


def test_info_nce_value_and_gradient_against_float64():
  x, y = embeddings()
  value, grad = jax.value_and_grad(losses.info_nce)(
    jnp.float32(x), jnp.float32(y), jnp.float32(5.0)
  )
  expected, expected_grad = info_nce_float64(x, y, 5.0)
  np.testing.assert_allclose(value, expected, rtol=1e-6)
  np.testing.assert_allclose(grad, expected_grad, atol=1e-6)


def test_info_nce_of_indistinguishable_pairs_is_log_batch():
  x = jnp.ones((16, 8))
  np.testing.assert_allclose(losses.info_nce(x, x, jnp.float32(3.0)), np.log(16), rtol=1e-6)


def sigmoid_float64(x, y, scale, bias):
  xn = x / np.linalg.norm(x, axis=1, keepdims=True)
  yn = y / np.linalg.norm(y, axis=1, keepdims=True)
  z = 2 * np.eye(len(x)) - 1
  return np.log1p(np.exp(-z * (scale * xn @ yn.T + bias))).sum() / len(x)


def test_sigmoid_loss_against_float64():
  x, y = embeddings()
  value = losses.sigmoid_contrastive(
    jnp.float32(x), jnp.float32(y), jnp.float32(10.0), jnp.float32(-4.0)
  )
  np.testing.assert_allclose(value, sigmoid_float64(x, y, 10.0, -4.0), rtol=1e-6)


def negative_l2_float64(x, y):
  return -np.linalg.norm(x[:, None] - y[None], axis=-1)


def test_similarities_against_float64():
  x, y = embeddings()
  norm = lambda a: a / np.linalg.norm(a, axis=1, keepdims=True)
  expected = {
    "cosine": norm(x) @ norm(y).T,
    "inner_product": x @ y.T,
    "negative_l2": negative_l2_float64(x, y),
  }
  assert set(expected) == set(losses.SIMILARITIES)
  for name, value in expected.items():
    found = losses.SIMILARITIES[name](jnp.float32(x), jnp.float32(y))
    np.testing.assert_allclose(found, value, atol=1e-5)


@pytest.mark.parametrize("similarity", list(losses.SIMILARITIES.values()))
def test_permuting_the_batch_leaves_info_nce_alone(similarity):
  x, y = (jnp.float32(a) for a in embeddings())
  order = np.random.default_rng(1).permutation(len(x))
  one = losses.info_nce(x, y, jnp.float32(5.0), similarity)
  other = losses.info_nce(x[order], y[order], jnp.float32(5.0), similarity)
  np.testing.assert_allclose(one, other, rtol=1e-6)
  assert abs(losses.info_nce(x, y[order], jnp.float32(5.0), similarity) - one) > 1e-3


def contrastive(kind):
  if kind == "softmax":
    return lambda x, y: losses.info_nce(x, y, jnp.float32(5.0))
  return lambda x, y: losses.sigmoid_contrastive(x, y, jnp.float32(5.0), jnp.float32(-2.0))


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_spread_over_eight_devices_equals_one(kind):
  x, y = (jnp.float32(a) for a in embeddings())
  whole = jax.value_and_grad(contrastive(kind), argnums=(0, 1))(x, y)
  mesh = partition.make_mesh(dict(data=4, fsdp=2, tensor=1))
  rows = NamedSharding(mesh, P(("data", "fsdp")))
  with jax.set_mesh(mesh):
    loss = jax.jit(jax.value_and_grad(contrastive(kind), argnums=(0, 1)))
    spread = loss(jax.device_put(x, rows), jax.device_put(y, rows))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), spread, whole)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_no_device_holds_more_than_its_rows(kind):
  """With 64 rows on 8 devices, no array of the compiled program is 64x64: at most 8x64."""
  batch, dim = 64, 4
  mesh = partition.make_mesh(dict(data=4, fsdp=2, tensor=1))
  rows = NamedSharding(mesh, P(("data", "fsdp")))
  shape = jax.ShapeDtypeStruct((batch, dim), jnp.float32, sharding=rows)
  with jax.set_mesh(mesh):
    gradient = jax.jit(jax.grad(contrastive(kind), argnums=(0, 1)))
    text = gradient.lower(shape, shape).compile().as_text()
  assert f"f32[{batch // 8},{batch}]" in text
  assert f"[{batch},{batch}]" not in text


def test_the_cosine_of_bf16_embeddings_is_taken_in_f32():
  """Times a scale of 100, bf16's rounding would move logits by half a unit."""
  rng = np.random.default_rng(0)
  x, y = (jnp.asarray(rng.normal(size=(8, 512)), jnp.bfloat16) for _ in range(2))
  a, b = (np.asarray(z, np.float64) for z in (x, y))
  exact = a @ b.T / np.linalg.norm(a, axis=1)[:, None] / np.linalg.norm(b, axis=1)
  np.testing.assert_allclose(losses.cosine_similarity(x, y), exact, atol=1e-6)
