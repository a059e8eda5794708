"""CLIP: published sizes, the text tower, temperature, the system's loss."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import contract
from vlx.core.config import build
from vlx.core.errors import UserError
from vlx.losses.contrastive import cosine_similarity
from vlx.models.contrastive import clip as clip_module
from vlx.models.contrastive.clip import CLIP, TextTransformer, published_size
from vlx.models.layers import apply

S = jax.ShapeDtypeStruct
TOWER = dict(width=16, depth=2, num_heads=2, mlp_dim=32)
TEXT = dict(vocab_size=30, context_length=8, **TOWER)
SECTION = dict(image=dict(image_size=8, patch_size=4, **TOWER), text=TEXT, embed_dim=12)


# The counts of OpenAI's released models.
@pytest.mark.parametrize(
  "name,expected",
  [
    ("B/32", 151_277_313),
    ("B/16", 149_620_737),
    ("L/14", 427_616_513),
    ("L/14@336", 427_944_193),
    ("RN50", 102_007_137),
    ("RN101", 119_688_033),
    ("RN50x4", 178_300_601),
    ("RN50x16", 290_979_217),
    ("RN50x64", 623_258_305),
  ],
)
def test_published_clip_parameters(name, expected):
  clip = build(CLIP, published_size(name), "model")
  shapes = contract.shapes(clip)["params"]
  assert sum(x.size for x in jax.tree.leaves(shapes)) == expected


def batch(seed=0):
  rng = np.random.default_rng(seed)
  lengths = rng.integers(3, 9, size=(6, 1))
  return {
    "image": jnp.asarray(rng.normal(size=(6, 8, 8, 3)), jnp.float32),
    "text": jnp.asarray(rng.integers(0, 30, (6, 8)), jnp.int32),
    "text_mask": jnp.asarray(np.arange(8) < lengths),
  }


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("pool", ["last", "mean"])
def test_padding_is_never_read(causal, pool):
  tower = TextTransformer(**TEXT, causal=causal, pool=pool)
  data = batch()
  params = jax.jit(tower.init)(jax.random.key(0), data["text"], data["text_mask"])
  encode = jax.jit(lambda text: tower.apply(params, text, data["text_mask"])[0])
  scrambled = jnp.where(data["text_mask"], data["text"], (data["text"] + 7) % 30)
  np.testing.assert_allclose(encode(data["text"]), encode(scrambled), atol=1e-6)
  changed = data["text"].at[:, 0].add(1) % 30
  assert not np.allclose(encode(data["text"]), encode(changed), atol=1e-4)


def test_a_shorter_context_gives_the_same_embedding():
  tower, data = TextTransformer(**TEXT), batch()
  mask = data["text_mask"] & (jnp.arange(8) < 5)
  params = jax.jit(tower.init)(jax.random.key(0), data["text"], mask)
  whole, short = (jax.jit(tower.apply)(params, data["text"][:, :n], mask[:, :n])[0] for n in (8, 5))
  # To rounding: products of other lengths add in another order. A token that saw padding would differ by tenths.
  np.testing.assert_allclose(
    whole, short, rtol=0, atol=16 * np.finfo(np.float32).eps * np.abs(short).max()
  )
  with pytest.raises(ValueError, match="this tower takes 8"):
    tower.apply(params, jnp.zeros((1, 9), jnp.int32), jnp.ones((1, 9), bool))


def test_temperature_starts_at_a_fourteenth_and_is_clipped_at_100():
  clip = build(CLIP, SECTION, "model")
  variables = contract.init(clip)
  loss = jax.jit(lambda v: contract.loss(clip, v, batch(), jax.random.key(0), step=0, train=False))
  np.testing.assert_allclose(loss(variables)[1].metrics["scale"], 1 / 0.07, rtol=1e-6)
  variables["params"]["logit_scale"] = jnp.float32(9.0)
  np.testing.assert_allclose(loss(variables)[1].metrics["scale"], 100.0, rtol=1e-5)


def test_loss_is_that_of_its_own_embeddings():
  """The system's loss, from its public methods: InfoNCE of encode_image and encode_text."""
  clip, data = build(CLIP, SECTION, "model"), batch()
  variables = contract.init(clip)
  image = jax.jit(clip.embed_image)(variables, data["image"])
  text = jax.jit(clip.embed_text)(variables, data["text"], data["text_mask"])
  logits = cosine_similarity(image, text) / 0.07
  np.testing.assert_allclose(clip.similarity(image, text) / 0.07, logits, rtol=1e-5)
  both = [jnp.diag(jax.nn.log_softmax(logits, axis)).mean() for axis in (0, 1)]
  loss, _ = jax.jit(lambda v: contract.loss(clip, v, data, jax.random.key(0), step=0, train=True))(
    variables
  )
  np.testing.assert_allclose(loss, -sum(both) / 2, rtol=1e-5)


RESNET = {**SECTION, "image": dict(image_size=64, stage_sizes=(1, 1), stem_width=16)}


def test_a_section_with_stages_is_a_resnet_whose_statistics_the_loss_carries():
  # random weights without compiling how they are drawn
  clip, data = (build(CLIP, RESNET, "model"), batch())
  data["image"] = jnp.asarray(np.random.default_rng(0).normal(size=(6, 64, 64, 3)), jnp.float32)
  shapes = contract.shapes(clip)
  assert shapes["state"].keys() == {"batch_stats"}
  rng = np.random.default_rng(1)
  variables = jax.tree.map(lambda s: jnp.asarray(rng.uniform(0.1, 0.2, s.shape), s.dtype), shapes)
  loss = jax.jit(
    lambda v, train: contract.loss(clip, v, data, jax.random.key(0), step=0, train=train),
    static_argnames="train",
  )
  moved = {}
  for train in (False, True):
    state = loss(variables, train)[1].state
    assert jax.tree.structure(state) == jax.tree.structure(variables["state"])
    moved[train] = [
      bool((a != b).any()) for a, b in zip(*map(jax.tree.leaves, (state, variables["state"])))
    ]
  assert not any(moved[False]) and all(moved[True])
  # Images are encoded by the statistics that were gathered.
  other = {**variables, "state": jax.tree.map(lambda x: x + 1, variables["state"])}
  encode = jax.jit(clip.embed_image)
  assert not np.allclose(encode(variables, data["image"]), encode(other, data["image"]), atol=1e-4)


def test_a_mistake_in_a_resnets_section_is_told():
  section = {**RESNET["image"], "stem_widths": 4}
  with pytest.raises(
    UserError, match="no field model.image.stem_widths: did you mean 'stem_width'"
  ):
    build(CLIP, {**RESNET, "image": section}, "model")


def test_sigmoid_loss_learns_a_bias_of_its_own():
  clip = build(CLIP, {**SECTION, "loss_type": "sigmoid"}, "model")
  params = contract.shapes(clip)["params"]
  softmax = contract.shapes(build(CLIP, SECTION, "model"))["params"]
  assert set(params) - set(softmax) == {"logit_bias"}


def test_the_temperature_stops_at_100_and_comes_back():
  """As a parameter that is clamped after each step (open_clip): above, what would raise the scale
  moves nothing, what would lower it does.
  """
  most = math.log(clip_module.MAX_SCALE)
  value, pull = jax.value_and_grad(lambda x: clip_module.bounded(x, most))(jnp.float32(most + 0.1))
  assert value == np.float32(most) and pull == 1.0  # descent lowers it
  assert jax.grad(lambda x: -clip_module.bounded(x, most))(jnp.float32(most + 0.1)) == 0.0
  for sign in (1.0, -1.0):
    assert jax.grad(lambda x: sign * clip_module.bounded(x, most))(jnp.float32(1.0)) == sign


@pytest.mark.parametrize("loss_type, start", (("softmax", 1 / 0.07), ("sigmoid", 10.0)))
def test_each_loss_starts_at_its_papers_temperature(loss_type, start):
  clip = build(CLIP, {**SECTION, "loss_type": loss_type}, "model")
  variables = jax.jit(clip.init)(jax.random.key(0))
  scale = lambda v: apply.infer(clip.network, v, method="scale")
  np.testing.assert_allclose(scale(variables), start, rtol=1e-5)
  assert clip.init_scale == 1 / 0.07  # a run that was begun with this default goes on
  hot = {**variables, "params": {**variables["params"], "logit_scale": jnp.float32(5.0)}}
  np.testing.assert_allclose(scale(hot), 100.0 if loss_type == "softmax" else np.exp(5), rtol=1e-5)
