"""LLaMA: published sizes, its layers, causality, and the same logits with a cache and without."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import contract
from vlx.models.language.llama import LanguageModel, LLaMA, published_size
from vlx.models.layers.norm import RMSNorm
from vlx.models.layers.position import rotary_angles, rotate

TINY = dict(
  vocab_size=30,
  width=16,
  depth=2,
  num_heads=4,
  num_groups=2,
  mlp_dim=24,
  context_length=16,
  epsilon=1e-5,
)


def normal(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def texts(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).integers(0, 30, shape), jnp.int32)


def drawn(network):
  """Variables with every parameter drawn: logits of some size, norms that are not 1."""
  shapes = jax.eval_shape(network.init, jax.random.key(0), texts(1, 4))
  rng = np.random.default_rng(1)
  return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape), jnp.float32), shapes)


# Those of transformers' LlamaForCausalLM; Meta's cards have 6.7, 13.0, 32.5, 65.2 and 70 billion.
@pytest.mark.parametrize(
  "name, expected",
  [
    ("1-7B", 6_738_415_616),
    ("1-13B", 13_015_864_320),
    ("1-33B", 32_528_943_616),
    ("1-65B", 65_285_660_672),
    ("2-7B", 6_738_415_616),
    ("2-13B", 13_015_864_320),
    ("2-70B", 68_976_648_192),
  ],
)
def test_published_parameters(name, expected):
  shapes = jax.eval_shape(LLaMA(**published_size(name)).init, jax.random.key(0), texts(1, 4))
  assert sum(x.size for x in jax.tree.leaves(shapes)) == expected


def test_rms_norm():
  x, scale = normal(2, 3, 8), normal(8, seed=1)
  found = RMSNorm(0.5).apply({"params": {"scale": scale}}, x)
  np.testing.assert_allclose(
    found, scale * x / np.sqrt((x**2).mean(-1, keepdims=True) + 0.5), rtol=1e-5
  )


def test_rotation_is_by_position_times_frequency():
  """As complex numbers x_i + √−1 · x_{i+half}, written out in f64."""
  x, positions = normal(2, 5, 3, 8), np.array([[0, 1, 2, 3, 4], [7, 8, 9, 100, 2000]])
  found = np.asarray(rotate(x, rotary_angles(jnp.asarray(positions), 8, 50.0)))
  turn = np.exp(1j * positions[:, :, None, None] * 50.0 ** (-np.arange(4) / 4))
  expected = (np.asarray(x[..., :4]) + 1j * np.asarray(x[..., 4:])) * turn
  np.testing.assert_allclose(found[..., :4] + 1j * found[..., 4:], expected, atol=1e-3)
  np.testing.assert_array_equal(found[0, 0], x[0, 0])


def test_products_of_rotated_heads_depend_on_their_distance_alone():
  q, k = normal(1, 1, 1, 8), normal(1, 1, 1, 8, seed=1)
  at = lambda x, position: rotate(x, rotary_angles(jnp.array([[position]]), 8, 10000.0)).ravel()
  products = [at(q, 5 + shift) @ at(k, 2 + shift) for shift in (0, 1, 10, 50)]
  np.testing.assert_allclose(products, products[0], rtol=1e-4)
  assert abs(at(q, 5) @ at(k, 3) - products[0]) > 1e-2


def test_causality_by_gradient():
  """∂ logits[t] / ∂ embedding[s] is zero exactly where s > t."""
  network = LLaMA(**TINY)
  variables = drawn(network)
  logits = lambda x: network.apply(
    variables, network.apply(variables, x, method="decode")[0], method="logits"
  )[0]
  reach = np.abs(jax.jit(jax.jacobian(logits))(normal(1, 5, 16))).sum(axis=(1, 2, 4))
  np.testing.assert_array_equal(reach > 1e-6, np.tri(5, dtype=bool))


def test_how_the_stack_is_run_changes_no_value_and_no_gradient():
  text, variables = texts(2, 6), drawn(LLaMA(**TINY))

  def loss(network):
    return jax.jit(jax.value_and_grad(lambda v: (network.apply(v, text)[0] ** 2).mean()))(variables)

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    loss(LLaMA(**TINY)),
    loss(LLaMA(**TINY, remat=True, unroll=2)),
  )


@pytest.mark.parametrize(
  "fields", [{}, dict(tie_embeddings=True, scanned=False), dict(num_groups=4)], ids=str
)
def test_logits_are_the_same_with_a_cache_and_without(fields):
  """Prompts of 6, 3 and 1 tokens, four tokens one by one, of which row 1 takes two, and another
  text.
  """
  network = LLaMA(**{**TINY, **fields})
  variables, text = drawn(network), texts(3, 16)
  whole = jax.jit(network.apply)(variables, text)[0]
  step = jax.jit(network.apply)
  read = np.zeros(3, int)
  cache = network.empty_cache(3, 16)
  for counts in ([6, 3, 1], [1, 1, 1], [1, 0, 1], [1, 0, 1], [1, 1, 1], [4, 0, 6]):
    length = 6 if max(counts) > 1 else 1  # one program for all prompts, one for single tokens
    text_mask = np.arange(length) < np.array(counts)[:, None]
    positions = np.minimum(read[:, None] + np.arange(length), 15)
    given = jnp.where(text_mask, np.take_along_axis(np.asarray(text), positions, 1), 29)
    logits, cache = step(variables, given, jnp.asarray(text_mask), cache)
    for row, count in enumerate(counts):
      expected = whole[row, read[row] : read[row] + count]
      np.testing.assert_allclose(logits[row, :count], expected, atol=1e-5 * np.abs(whole).max())
    read += counts
    np.testing.assert_array_equal(cache.lengths, read)
  assert step._cache_size() == 2


def test_what_goes_beyond_the_last_slot_leaves_the_others_alone():
  network = LLaMA(**TINY)
  variables, text = drawn(network), texts(1, 8)
  apply = jax.jit(network.apply)
  _, cache = apply(variables, text[:, :5], None, network.empty_cache(1, 6))
  short, _ = apply(variables, text[:, 5:6], None, cache)
  padded, _ = apply(variables, text[:, 5:8], jnp.array([[True, False, False]]), cache)
  np.testing.assert_allclose(padded[:, 0], short[:, 0], atol=1e-5)


def test_a_cache_and_texts_that_do_not_fit_are_refused():
  network = LLaMA(**TINY)
  variables = drawn(network)
  with pytest.raises(ValueError, match="this model reads 16"):
    network.apply(variables, texts(1, 17))
  with pytest.raises(ValueError, match="this model reads 16"):
    network.empty_cache(1, 17)
  with pytest.raises(ValueError, match="2 texts, but a cache for 3"):
    network.apply(variables, texts(2, 4), None, network.empty_cache(3, 8))
  with pytest.raises(ValueError, match="do not divide"):
    LLaMA(**{**TINY, "num_groups": 3}).init(jax.random.key(0), texts(1, 4))


def test_bfloat16_computes_in_bfloat16_and_keeps_parameters_and_logits_in_float32():
  network = LLaMA(**TINY, dtype="bfloat16")
  variables = jax.eval_shape(network.init, jax.random.key(0), texts(1, 4))
  assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
  (logits, cache), sown = jax.eval_shape(
    lambda v: network.apply(
      v, texts(2, 4), None, network.empty_cache(2, 4), mutable=["intermediates"]
    ),
    variables,
  )
  assert sown["intermediates"]["blocks"]["hidden"][0].dtype == cache.keys.dtype == jnp.bfloat16
  assert logits.dtype == jnp.float32


@pytest.mark.parametrize("tied", [True, False])
def test_the_form_for_decoding_is_the_same_function(tied):
  system = LanguageModel(LLaMA(**TINY, tie_embeddings=tied))
  variables, text = {"params": drawn(system.decoder)["params"], "state": {}}, texts(2, 7)
  other, unstacked = system.for_decoding(variables)
  expected = system.token_logits(variables, text)
  np.testing.assert_allclose(
    other.token_logits(unstacked, text), expected, atol=1e-5 * np.abs(expected).max()
  )
  shapes = contract.shapes(other)
  assert jax.tree.map(jnp.shape, unstacked) == jax.tree.map(jnp.shape, shapes)


def test_loss_is_the_mean_surprise_at_real_next_tokens():
  system = LanguageModel(LLaMA(**TINY))
  variables, text = {"params": drawn(system.decoder)["params"], "state": {}}, texts(3, 6)
  real = np.arange(6) < np.array([6, 3, 1])[:, None]
  surprise = -jax.nn.log_softmax(system.token_logits(variables, text))
  expected = [
    float(surprise[row, t, text[row, t + 1]])
    for row, count in enumerate((6, 3, 1))
    for t in range(count - 1)
  ]
  loss = lambda text: contract.loss(
    system, variables, {"text": text, "text_mask": jnp.asarray(real)}, None, step=0, train=True
  )
  np.testing.assert_allclose(loss(text)[0], np.mean(expected), rtol=1e-5)
  np.testing.assert_allclose(
    loss(text)[1].metrics["perplexity"], np.exp(np.mean(expected)), rtol=1e-5
  )
  np.testing.assert_array_equal(loss(jnp.where(real, text, 29))[0], loss(text)[0])
