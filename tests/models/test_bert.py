"""BERT: published sizes, padding, segments, the order of its norms, the tied decoder."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlx.models.layers.transformer import Transformer
from vlx.models.pretraining.bert import BERT, BERTPretraining, published_size

TINY = dict(vocab_size=30, context_length=10, width=16, depth=2, num_heads=2, mlp_dim=32)


# Those of transformers' BertForPreTraining.
@pytest.mark.parametrize(
  "name, expected",
  [
    ("base-uncased", 110_106_428),
    ("large-uncased", 336_226_108),
    ("base-cased", 108_932_934),
    ("large-cased", 334_661_958),
  ],
)
def test_published_parameters(name, expected):
  network = BERTPretraining(BERT(**published_size(name)))
  shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
  assert sum(x.size for x in jax.tree.leaves(shapes)) == expected


@pytest.fixture(scope="module")
def pretraining():
  """The network, its variables with every parameter drawn, a text, its mask, its segments."""
  network, rng = BERTPretraining(BERT(**TINY)), np.random.default_rng(0)
  text = jnp.asarray(rng.integers(0, 30, (3, 9)), jnp.int32)
  shapes = jax.eval_shape(network.init, jax.random.key(0), text)
  variables = jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape), jnp.float32), shapes)
  text_mask = jnp.arange(9) < jnp.array([[9], [5], [2]])
  segments = jnp.asarray(rng.integers(0, 2, (3, 9)), jnp.int32)
  return jax.jit(network.apply), variables, text, text_mask, segments


def test_padding_is_never_read(pretraining):
  apply, variables, text, text_mask, segments = pretraining
  scrambled = jnp.where(text_mask, text, (text + 7) % 30)
  (words, sentence), (others, other) = (
    apply(variables, t, text_mask, segments) for t in (text, scrambled)
  )
  np.testing.assert_allclose(sentence, other, atol=1e-5)
  np.testing.assert_allclose(words[text_mask], others[text_mask], atol=1e-4)
  assert not np.allclose(sentence, apply(variables, text, None, segments)[1], atol=1e-3)


def test_words_see_those_before_and_after_them(pretraining):
  apply, variables, text, text_mask, segments = pretraining
  words = apply(variables, text, text_mask, segments)[0][0]
  for changed in (0, 8):
    others = apply(variables, text.at[0, changed].add(1) % 30, text_mask, segments)[0][0]
    assert (np.abs(words - others).max(axis=1) > 1e-4).all()


def test_no_segments_are_all_of_the_first(pretraining):
  apply, variables, text, text_mask, segments = pretraining
  first = apply(variables, text, text_mask)[1]
  np.testing.assert_array_equal(
    first, apply(variables, text, text_mask, jnp.zeros_like(segments))[1]
  )
  assert not np.allclose(first, apply(variables, text, text_mask, segments)[1], atol=1e-3)


def test_the_decoder_is_tied_to_the_words(pretraining):
  """A word's logits follow its embedding, also of a word that no text has."""
  apply, variables, text, text_mask, _ = pretraining
  text = text % 29
  moved = jax.tree.map(lambda x: x, variables)
  embedding = moved["params"]["tower"]["word_embedding"]
  embedding["embedding"] = embedding["embedding"].at[29].multiply(2)
  (words, _), (others, _) = (apply(v, text, text_mask) for v in (variables, moved))
  np.testing.assert_allclose(words[..., :29], others[..., :29], atol=1e-5)
  bias = variables["params"]["word_bias"][29]
  np.testing.assert_allclose(
    2 * (words[..., 29] - bias), others[..., 29] - bias, rtol=1e-3, atol=1e-4
  )


def test_longer_texts_are_refused():
  with pytest.raises(ValueError, match="this encoder takes 10"):
    BERT(**TINY).init(jax.random.key(0), jnp.zeros((1, 11), jnp.int32))


def test_post_norm_layers_put_out_normed_tokens_and_pre_norm_layers_do_not():
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(2, 5, 16)), jnp.float32)
  for norm in ("post", "pre"):
    stack = Transformer(depth=3, num_heads=2, mlp_dim=32, norm=norm)
    shapes = jax.eval_shape(stack.init, jax.random.key(0), x)
    # Norms are ones and zeros, all else is drawn.
    params = jax.tree_util.tree_map_with_path(
      lambda path, p: (
        jnp.full(p.shape, path[-1].key == "scale", jnp.float32)
        if "norm" in path[-2].key
        else jnp.asarray(rng.normal(size=p.shape), jnp.float32)
      ),
      shapes,
    )
    _, sown = jax.jit(lambda p, x: stack.apply(p, x, mutable=["intermediates"]))(params, x)
    (hidden,) = sown["intermediates"]["blocks"]["hidden"]
    assert hidden.shape == (3, 2, 5, 16)
    normed = np.allclose(hidden.mean(-1), 0, atol=1e-5) and np.allclose(
      hidden.std(-1), 1, atol=1e-3
    )
    assert normed == (norm == "post")
