"""FLOPs of small functions, counted by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl

from vlx.compile import flops

B, D, H, K = 5, 7, 11, 3
array = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)


def total(loss, params, *rest):
  return flops.count(loss, params, *rest).flops


def test_a_first_layer_has_no_gradient_to_its_input():
  def loss(params, x):
    return (jnp.tanh(x @ params["a"]) @ params["b"]).sum()

  params = {"a": array(D, H), "b": array(H, K)}
  assert total(loss, params, array(B, D)) == 2 * (2 * B * D * H) + 3 * (2 * B * H * K)


def test_frozen_layers_count_once_before_and_twice_behind_what_is_trained():
  def loss(params, x, frozen):
    x = x @ jax.lax.stop_gradient(params["unused"])
    return (x @ params["trained"] @ frozen).sum()

  params = {"unused": array(D, D), "trained": array(D, D)}
  assert total(loss, params, array(B, D), array(D, D)) == (1 + 2 + 2) * (2 * B * D * D)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.checkpoint, jax.jit])
def test_a_scanned_stack_counts_by_its_depth_and_without_recomputation(wrap):
  def loss(params, x):
    block = wrap(lambda x, w: (jax.nn.relu(x @ w), None))
    return jax.lax.scan(block, x, params)[0].sum()

  # In a loop all layers are one: the first counts like the others.
  assert total(loss, array(4, D, D), array(B, D)) == 4 * 3 * (2 * B * D * D)


def test_convolutions():
  def loss(params, x):
    x = jax.lax.conv_general_dilated(
      x, params, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return x.sum()

  def grouped(params, x):
    x = jax.lax.conv_general_dilated(
      x, params, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=4
    )
    return x.sum()

  assert total(loss, array(3, 3, 6, 10), array(2, 8, 8, 6)) == 2 * (
    2 * (2 * 4 * 4 * 10) * 3 * 3 * 6
  )
  assert total(grouped, array(3, 3, 2, 12), array(2, 8, 8, 8)) == 2 * (
    2 * (2 * 6 * 6 * 12) * 3 * 3 * 2
  )

  def transposed(params, x):
    return jax.lax.conv_transpose(x, params, (2, 2), "VALID").sum()

  # Each input pixel is multiplied with the whole kernel, once.
  assert total(transposed, array(2, 2, 6, 10), array(1, 4, 4, 6)) == pytest.approx(
    2 * 2 * (4 * 4) * (2 * 2) * 6 * 10, rel=0
  )


def test_what_nothing_needs_is_not_counted():
  def loss(params, x):
    x @ params
    return params.sum()

  assert total(loss, array(D, D), array(B, D)) == 0


def test_of_branches_the_most_expensive():
  def loss(params, x, choice):
    branches = [lambda x: x, lambda x: x @ params, lambda x: x @ params @ params]
    return jax.lax.switch(choice, branches, x).sum()

  choice = jax.ShapeDtypeStruct((), jnp.int32)
  assert total(loss, array(D, D), array(B, D), choice) == (2 + 3) * (2 * B * D * D)


def test_custom_gradients_count_as_their_forward_does():
  square = jax.custom_vjp(lambda x: x @ x)
  square.defvjp(lambda x: (x @ x, x), lambda x, g: (g @ x @ x @ x,))
  assert total(lambda p: square(p).sum(), array(D, D)) == 3 * 2 * D**3


@pytest.mark.parametrize("declared", [None, 1000])
def test_kernels_count_as_declared_or_by_body_and_grid(declared):
  def body(x, w, out):
    out[...] = jnp.dot(x[...], w[...])

  estimate = declared and pl.CostEstimate(flops=declared, transcendentals=0, bytes_accessed=0)
  kernel = pl.pallas_call(
    body,
    grid=(4,),
    in_specs=[pl.BlockSpec((8, 16), lambda i: (i, 0)), pl.BlockSpec((16, 16), lambda i: (0, 0))],
    out_specs=pl.BlockSpec((8, 16), lambda i: (i, 0)),
    out_shape=array(32, 16),
    cost_estimate=estimate,
    name="product",
  )
  counted = flops.count(lambda p, x: kernel(x, p).sum(), array(16, 16), array(32, 16))
  assert counted.kernels == {"product": 3 * (declared or 4 * 2 * 8 * 16 * 16)}
  assert counted.flops == counted.kernels["product"]


@pytest.mark.parametrize("products", [0, 3])
def test_a_kernel_counts_as_the_plain_products_it_stands_for(products):
  def body(x, out):
    value = x[...]
    for _ in range(products):
      value = jnp.dot(value, value)
    out[...] = value

  kernel = pl.pallas_call(body, out_shape=array(D, D), name="other")

  def loss(params):
    return jax.lax.platform_dependent(params, tpu=kernel, default=lambda x: x @ x).sum()

  counted = flops.count(loss, array(D, D))
  assert (counted.flops, counted.kernels, counted.has_kernels) == (3 * 2 * D**3, {}, True)


def test_a_loop_without_a_length_is_told():
  def loss(params, x):
    return jax.lax.while_loop(lambda x: x.sum() < 1, lambda x: x @ params, x).sum()

  counted = flops.count(loss, array(D, D), array(B, D))
  assert counted.unbounded_loops == 1 and counted.flops == 3 * (2 * B * D * D)


def test_counts_beyond_64_bits_are_exact():
  def loss(params, x):
    return jax.lax.scan(lambda x, _: (x @ params, None), x, length=10**9)[0].sum()

  n = 2**17
  assert total(loss, array(n, n), array(n, n)) == 10**9 * 3 * 2 * n**3
