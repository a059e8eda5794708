"""Attention, the transformer stack, positions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from vlx.core.system import flatten
from vlx.models.layers.attention import MultiHeadAttention
from vlx.models.layers.linear import flat_dot_general
from vlx.models.layers.position import resample_positions
from vlx.models.layers.transformer import ACTIVATIONS, Transformer, token
from vlx.ops.masks import Causal, Segments, UpTo, Window


def normal(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_attention_is_softmax_of_scaled_products_times_values():
  module = MultiHeadAttention(num_heads=2)
  x = normal(3, 5, 8)
  mask = Segments.of(jnp.array([[1, 1, 2, 2, 2], [1, 1, 1, 1, 1], [3, 1, 2, 2, 3]])) & Window(2, 1)
  seen = mask.dense(5, 5)[:, None]
  params = jax.jit(module.init)(jax.random.key(0), x)["params"]
  params = jax.tree.map(lambda p: normal(*p.shape, seed=p.size), params)
  q, k, v = (
    jnp.einsum("btd,dhe->bthe", x, params[n]["kernel"]) + params[n]["bias"]
    for n in ("query", "key", "value")
  )
  scores = jnp.einsum("bqhe,bkhe->bhqk", q, k) / 2.0  # √head_dim
  weights = jnp.where(seen, jnp.exp(scores), 0)
  weights = weights / weights.sum(-1, keepdims=True)
  expected = (
    jnp.einsum("bhqk,bkhe,hed->bqd", weights, v, params["out"]["kernel"]) + params["out"]["bias"]
  )
  found, sown = jax.jit(lambda p: module.apply({"params": p}, x, mask, mutable=["intermediates"]))(
    params
  )
  np.testing.assert_allclose(found, expected, atol=2e-4, rtol=1e-4)
  np.testing.assert_allclose(sown["intermediates"]["attention"][0], weights, atol=1e-5)


@pytest.mark.parametrize(
  "axes, kernel", [((-1,), (8, 3)), ((-1,), (8, 3, 2)), ((-2, -1), (5, 8, 4))]
)
def test_flat_product_is_the_product_and_so_are_its_gradients(axes, kernel):
  x, w = normal(3, 5, 8), normal(*kernel, seed=1)
  count = len(axes)
  numbers = ((tuple(range(3 - count, 3)), tuple(range(count))), ((), ()))
  for of in (
    lambda f: f(x, w, numbers),
    lambda f: jax.grad(lambda x, w: (f(x, w, numbers) ** 3).sum(), (0, 1))(x, w),
  ):
    flat, plain = (jax.jit(lambda: of(f))() for f in (flat_dot_general, jax.lax.dot_general))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3), flat, plain)


def test_permuting_tokens_permutes_the_output():
  stack = Transformer(depth=2, num_heads=2, mlp_dim=16)
  x = normal(2, 6, 8)
  params = jax.jit(stack.init)(jax.random.key(0), x)
  order = np.random.default_rng(0).permutation(6)
  run = jax.jit(stack.apply)
  np.testing.assert_allclose(run(params, x[:, order]), run(params, x)[:, order], atol=1e-5)


def test_causal_mask_by_gradient():
  """∂ output[t] / ∂ input[s] is zero exactly where s > t."""
  stack = Transformer(depth=2, num_heads=2, mlp_dim=16)
  x = normal(1, 5, 8)
  params = jax.jit(stack.init)(jax.random.key(0), x)
  jacobian = jax.jit(jax.jacobian(lambda x: stack.apply(params, x, Causal())[0]))(x)[:, :, 0]
  reach = np.abs(jacobian).sum(axis=(1, 3)) > 1e-7
  np.testing.assert_array_equal(reach, np.tril(np.ones((5, 5), bool)))


@pytest.fixture(scope="module")
def run_as():
  """how → (loss, gradients) of one stack with the same parameters, however it is run."""
  x = normal(2, 4, 8)
  made = lambda how: Transformer(depth=3, num_heads=2, mlp_dim=16, **how)
  params = jax.jit(made({}).init)(jax.random.key(0), x)
  loss = lambda stack: lambda p: (stack.apply(p, x) ** 2).mean()
  return lambda how: jax.jit(jax.value_and_grad(loss(made(how))))(params)


@pytest.fixture(scope="module")
def plainly(run_as):
  return run_as({})


@pytest.mark.parametrize("how", [dict(remat=True), dict(unroll=3), dict(remat=True, unroll=2)])
def test_how_the_stack_is_run_changes_no_value_and_no_gradient(how, run_as, plainly):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), plainly, run_as(how)
  )


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("depth", [1, 3])
def test_a_pooled_token_is_that_of_the_whole_stack_and_so_are_its_gradients(norm, depth):
  stack = Transformer(depth=depth, num_heads=2, mlp_dim=16, norm=norm, remat=depth == 3)
  x, at = normal(3, 5, 8), jnp.array([0, 4, 2])
  params = jax.jit(stack.init)(jax.random.key(0), x)

  def whole(params, x):
    return token(stack.apply(params, x, Causal()), at)[:, 0]

  def pooled(params, x):
    return stack.apply(params, x, at, Causal(), UpTo(at[:, None]), method="pooled")[0]

  def both(f):
    def loss(*args):
      out = f(*args)
      return jnp.sin(out).sum(), out

    return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, x)

  one, other = both(whole), both(pooled)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), one, other)


def test_a_pooled_token_saves_most_of_the_last_layer():
  """XLA counts no product of the MLP but those of the tokens asked for, whoever else is computed
  with them.
  """
  stack = Transformer(depth=1, num_heads=2, mlp_dim=64)
  x, at = normal(4, 32, 16), jnp.zeros(4, jnp.int32)
  params = jax.jit(stack.init)(jax.random.key(0), x)
  flops = lambda f: jax.jit(f).lower(params, x).compile().cost_analysis()["flops"]
  whole = flops(lambda p, x: stack.apply(p, x))
  pooled = flops(lambda p, x: stack.apply(p, x, at, method="pooled")[0])
  assert pooled < 0.35 * whole


def test_layers_start_different():
  params = jax.jit(Transformer(depth=3, num_heads=2, mlp_dim=16).init)(
    jax.random.key(0), normal(1, 4, 8)
  )
  kernel = params["params"]["blocks"]["mlp"]["fc1"]["kernel"]
  assert kernel.shape == (3, 8, 16)
  assert not np.allclose(kernel[0], kernel[1])


def test_dropout_is_off_unless_training():
  x = normal(1, 4, 8)
  stack = Transformer(depth=2, num_heads=2, mlp_dim=16, dropout=0.5)
  params = jax.jit(stack.init)(jax.random.key(0), x)
  still = jax.jit(stack.apply)
  np.testing.assert_array_equal(still(params, x), still(params, x))
  train = jax.jit(lambda key: stack.apply(params, x, train=True, rngs={"dropout": key}))
  one, other = (train(jax.random.key(i)) for i in range(2))
  assert not np.allclose(one, other)


@pytest.mark.parametrize(
  "name,value",
  [
    # By hand at x = 1: Φ(1); ½(1 + tanh(√(2/π)·1.044715)); σ(1.702).
    ("gelu", 0.8413447),
    ("gelu_tanh", 0.8411920),
    ("quick_gelu", 0.8457958),
  ],
)
def test_the_three_gelus(name, value):
  np.testing.assert_allclose(ACTIVATIONS[name](jnp.float32(1.0)), value, rtol=1e-6)


def test_positions_at_the_same_size_are_unchanged():
  embedding = normal(1, 1 + 12, 7)
  np.testing.assert_array_equal(resample_positions(embedding, (3, 4), (3, 4)), embedding)


@pytest.mark.parametrize("target", [(5, 7), (2, 2), (6, 3)])
def test_positions_resample_as_the_released_code_does(target):
  embedding = normal(1, 1 + 12, 7)
  found = resample_positions(embedding, (3, 4), target)
  np.testing.assert_array_equal(found[:, 0], embedding[:, 0])
  grid = np.asarray(embedding[0, 1:]).reshape(3, 4, 7)
  zoom = (target[0] / 3, target[1] / 4, 1)
  expected = scipy.ndimage.zoom(grid, zoom, order=1)
  np.testing.assert_allclose(found[0, 1:].reshape(*target, 7), expected, atol=1e-5)


def test_torchs_initialization_is_that_of_its_modules():
  """Within the bounds of torch.nn.Linear, and of MultiheadAttention's q, k and v as one matrix."""
  width, mlp = 64, 256
  block = Transformer(depth=1, num_heads=4, mlp_dim=mlp, initialization="torch")
  x = jnp.zeros((1, 2, width))
  params = jax.jit(block.init)(jax.random.key(0), x)["params"]["blocks"]
  bounds = {
    "attention/query/kernel": (6 / (4 * width)) ** 0.5,
    "attention/value/kernel": (6 / (4 * width)) ** 0.5,
    "attention/out/kernel": width**-0.5,
    "mlp/fc1/kernel": width**-0.5,
    "mlp/fc1/bias": width**-0.5,
    "mlp/fc2/kernel": mlp**-0.5,
    "mlp/fc2/bias": mlp**-0.5,
    "attention/query/bias": 0.0,
    "attention/out/bias": 0.0,
  }
  for name, bound in bounds.items():
    x = np.asarray(flatten(params)[name])
    assert 0.9 * bound <= np.abs(x).max() <= bound, name
    np.testing.assert_allclose(x.std(), bound / 3**0.5, rtol=0.15, atol=1e-9, err_msg=name)
