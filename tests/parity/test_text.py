"""BERT and LLaMA against their references, by tables of names; the tables against the public
files.
"""

import re

import jax
import jax.numpy as jnp
import pytest
from recorded import Recorded, assert_parity, assert_returned, named_shapes

from vlx.models.language import llama
from vlx.models.pretraining import bert
from vlx.pretrained import bert as bert_names
from vlx.pretrained import llama as llama_names
from vlx.pretrained import tables

BERT_ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh"}


@pytest.mark.parametrize("case", ["erf", "tanh"])
def test_bert_with_padding_and_segments(case):
  recorded = Recorded("bert", case)
  c = recorded.config
  network = bert.BERTPretraining(
    bert.BERT(
      vocab_size=c["vocab_size"],
      context_length=c["max_position_embeddings"],
      width=c["hidden_size"],
      depth=c["num_hidden_layers"],
      num_heads=c["num_attention_heads"],
      mlp_dim=c["intermediate_size"],
      num_segments=c.get("type_vocab_size", 2),
      activation=BERT_ACTIVATIONS[c["hidden_act"]],
    )
  )
  rows = bert_names.rows(c["num_attention_heads"])
  variables = recorded.load(rows, network)

  @jax.jit
  def run(variables, text, text_mask, segments):
    (words, sentence), sown = network.apply(
      variables, text, text_mask, segments, mutable=["intermediates"]
    )
    pooled, _ = network.tower.apply(
      {"params": variables["params"]["tower"]}, text, text_mask, segments
    )
    tower = sown["intermediates"]["tower"]
    hidden = [*tower["embeddings"], *tower["encoder"]["blocks"]["hidden"][0]]
    return dict(words=words, next_sentence=sentence, hidden=jnp.stack(hidden), pooled=pooled)

  found = run(variables, **recorded.inputs)
  for name, expected in recorded.outputs.items():
    for one, other in zip(found[name], expected) if name == "hidden" else [(found[name], expected)]:
      assert_parity(one, other)
  assert_returned(rows, variables, recorded.weights)


@pytest.mark.parametrize("case", ["heads", "groups", "tied", "meta"])
def test_llama_in_both_layouts(case):
  recorded = Recorded("llama", case)
  c = recorded.config
  heads, groups, tied = c["num_attention_heads"], c["num_key_value_heads"], c["tie_word_embeddings"]
  network = llama.LLaMA(
    vocab_size=c["vocab_size"],
    width=c["hidden_size"],
    depth=c["num_hidden_layers"],
    num_heads=heads,
    num_groups=groups,
    mlp_dim=c["intermediate_size"],
    context_length=c["max_position_embeddings"],
    epsilon=c["rms_norm_eps"],
    rope_theta=c["rope_parameters"]["rope_theta"],
    tie_embeddings=tied,
  )
  rows = (
    llama_names.meta_rows(heads, groups)
    if case == "meta"
    else llama_names.rows(heads, groups, tied)
  )
  variables = recorded.load(rows, network)
  text, real = recorded.inputs["text"], recorded.inputs["text_mask"]
  (logits, _), sown = jax.jit(lambda v, text: network.apply(v, text, mutable=["intermediates"]))(
    variables, text
  )
  # What stands at padding is nobody's business: the reference hides it from itself too.
  assert_parity(logits[real], recorded.outputs["logits"][real])
  (hidden,) = sown["intermediates"]["blocks"]["hidden"]
  for one, other in zip(hidden, recorded.outputs["hidden"], strict=True):
    assert_parity(one[real], other[real])
  assert_returned(rows, variables, recorded.weights)


def test_bert_table_is_that_of_the_public_file():
  network = bert.BERTPretraining(bert.BERT(**bert.published_size("base-uncased")))
  variables = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
  assert tables.public_shapes(bert_names.rows(12), variables) == named_shapes("bert_base")


def test_llama_table_is_that_of_the_public_file():
  network = llama.LLaMA(**llama.published_size("1-7B"))
  variables = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
  assert tables.public_shapes(llama_names.rows(32, 32), variables) == named_shapes("llama_7b")


def test_shards_of_meta_join_to_the_published_shapes():
  """Each of 70B's eight files holds an eighth of what META_SHARD_AXES names, and all of the
  norms.
  """
  network = llama.LLaMA(**llama.published_size("2-70B"))
  variables = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
  shapes = tables.public_shapes(llama_names.meta_rows(64, 8), variables)
  for name, shape in shapes.items():
    axes = [axis for pattern, axis in llama_names.META_SHARD_AXES if re.search(pattern, name)]
    assert len(axes) == len(shape) - 1, name
    assert all(shape[axis] % 8 == 0 for axis in axes)
