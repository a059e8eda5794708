"""VGG and GoogLeNet: published sizes, poolings and normalisation by their definitions, the
auxiliary loss.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import contract
from vlx.models.layers.pooling import adaptive_average_pool, max_pool_ceil
from vlx.models.vision.inception import PAPER, GoogLeNet, GoogLeNetTower, local_response_norm
from vlx.models.vision.resnet import STAGE_SIZES, ResNet, ResNetTower
from vlx.models.vision.vgg import CONVOLUTIONS, VGG, VGGTower

VGG16 = VGG(VGGTower(CONVOLUTIONS[16]), 1000)
GOOGLENET = GoogLeNet(GoogLeNetTower(), 1000)


def images(height, width, count=2):
  return jax.ShapeDtypeStruct((count, height, width, 3), jnp.float32)


def shapes_of(system, image):
  return contract.shapes(system)


# torchvision's counts; for the form of the paper those of Caffe's bvlc_googlenet.
@pytest.mark.parametrize(
  "system, expected",
  [
    (VGG(VGGTower(CONVOLUTIONS[11]), 1000), 132_863_336),
    (VGG(VGGTower(CONVOLUTIONS[13]), 1000), 133_047_848),
    (VGG16, 138_357_544),
    (VGG(VGGTower(CONVOLUTIONS[19]), 1000), 143_667_240),
    (GOOGLENET, 6_624_904),
    (GoogLeNet(GoogLeNetTower(), 1000, auxiliary=True), 13_004_888),
    (GoogLeNet(GoogLeNetTower(**PAPER), 1000), 6_998_552),
    (GoogLeNet(GoogLeNetTower(**PAPER), 1000, auxiliary=True), 13_378_280),
  ],
  ids=lambda x: "" if isinstance(x, int) else type(x).__name__,
)
def test_published_parameters(system, expected):
  assert (
    sum(x.size for x in jax.tree.leaves(shapes_of(system, images(224, 224))["params"])) == expected
  )


@pytest.mark.parametrize(
  "system, image, expected",
  [
    (VGG16, (224, 224), (14, 14, 512)),  # Xu et al., 2015: 196 annotations
    (VGG16, (100, 64), (6, 4, 512)),
    (GOOGLENET, (224, 224), (7, 7, 1024)),
    (GoogLeNet(GoogLeNetTower(**PAPER), 1000), (224, 224), (7, 7, 1024)),
    (ResNet(ResNetTower(*STAGE_SIZES[50]), 1000), (224, 224), (7, 7, 2048)),
  ],
  ids=lambda x: "" if isinstance(x, tuple) else type(x).__name__,
)
def test_features_are_maps(system, image, expected):
  variables, (rows, columns, features) = shapes_of(system, images(*image)), expected
  found = jax.eval_shape(system.encode_image, variables, images(*image))
  assert found.shape == (2, rows * columns, features)


def test_blocks_of_googlenet_are_those_of_table_1():
  tower = GoogLeNetTower(**PAPER)
  variables = jax.eval_shape(tower.init, jax.random.key(0), images(224, 224))
  maps = jax.eval_shape(lambda v, x: tower.apply(v, x, method="maps"), variables, images(224, 224))
  assert {block: (x.shape[1], x.shape[-1]) for block, x in maps.items()} == {
    "3a": (28, 256),
    "3b": (28, 480),
    "4a": (14, 512),
    "4b": (14, 512),
    "4c": (14, 512),
    "4d": (14, 528),
    "4e": (14, 832),
    "5a": (7, 832),
    "5b": (7, 1024),
  }


def test_an_image_that_is_too_small_is_refused():
  with pytest.raises(ValueError, match="10x200 is too small"):
    jax.eval_shape(VGG16.class_logits, shapes_of(VGG16, None), images(10, 200))


@pytest.mark.parametrize(
  "tower",
  [
    VGGTower(CONVOLUTIONS[11], dtype="bfloat16"),
    GoogLeNetTower(dtype="bfloat16"),
    GoogLeNetTower(dtype="bfloat16", **PAPER),
  ],
  ids=lambda x: type(x).__name__,
)
def test_bfloat16_computes_in_bfloat16_keeps_parameters_and_gives_logits_in_float32(tower):
  system = (VGG if isinstance(tower, VGGTower) else GoogLeNet)(tower, 5)
  variables = shapes_of(system, images(64, 64))
  assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
  assert jax.eval_shape(system.encode_image, variables, images(64, 64)).dtype == jnp.bfloat16
  assert jax.eval_shape(system.class_logits, variables, images(64, 64)).dtype == jnp.float32


SIZES = st.integers(1, 17)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(SIZES, SIZES, SIZES, SIZES)
def test_adaptive_average_is_its_definition(height, width, rows, columns):
  x = np.random.default_rng(0).normal(size=(2, height, width, 3)).astype(np.float32)
  expected = np.empty((2, rows, columns, 3))
  for i in range(rows):
    for j in range(columns):
      cell = x[
        :,
        math.floor(i * height / rows) : math.ceil((i + 1) * height / rows),
        math.floor(j * width / columns) : math.ceil((j + 1) * width / columns),
      ]
      expected[:, i, j] = cell.mean(axis=(1, 2))
  np.testing.assert_allclose(
    adaptive_average_pool(jnp.asarray(x), (rows, columns)), expected, atol=1e-6
  )


@settings(max_examples=10, deadline=None, derandomize=True)
@given(SIZES, SIZES, st.sampled_from([2, 3]))
def test_the_last_maximum_reaches_past_the_edge(height, width, window):
  # no zero is met
  x = -1 - np.random.default_rng(0).random(size=(2, height, width, 3)).astype(np.float32)
  # A window follows if the one before left something over.
  rows, columns = (
    [i for i in range(0, n, 2) if i == 0 or i - 2 + window < n] for n in (height, width)
  )
  expected = [
    [x[:, i : i + window, j : j + window].max(axis=(1, 2)) for j in columns] for i in rows
  ]
  np.testing.assert_array_equal(
    max_pool_ceil(jnp.asarray(x), window, 2), np.moveaxis(expected, 2, 0)
  )


def test_response_normalisation_is_its_definition():
  x = 30 * np.random.default_rng(0).normal(size=(1, 2, 3, 9)).astype(np.float32)
  expected = np.empty_like(x)
  for c in range(9):
    squares = (x[..., max(c - 2, 0) : c + 3] ** 2).sum(axis=-1)
    expected[..., c] = x[..., c] / (1 + 1e-4 / 5 * squares) ** 0.75
  np.testing.assert_allclose(local_response_norm(jnp.asarray(x)), expected, rtol=1e-5)


class Constants(nn.Module):
  """Logits (a, 0, 0), whatever the image: the loss of label 0 is log(1 + 2 exp(-a))."""

  def all_logits(self, image, *, train=False):
    return [jnp.tile(jnp.array([a, 0.0, 0.0]), (len(image), 1)) for a in (0.0, 1.0, 2.0)]


class ConstantGoogLeNet(GoogLeNet):
  network = property(lambda self: Constants())


def test_auxiliary_classifiers_weigh_three_tenths_and_in_training_alone():
  system = ConstantGoogLeNet(GoogLeNetTower(), 3, auxiliary=True)
  batch = {"image": jnp.ones((2, 40, 40, 3)), "label": jnp.array([0, 0])}
  training, evaluation = (
    contract.loss(
      system, {"params": {}, "state": {}}, batch, jax.random.key(0), step=0, train=train
    )[0]
    for train in (True, False)
  )
  main, first, second = np.log1p(2 * np.exp(-np.arange(3.0)))
  np.testing.assert_allclose(training, main + 0.3 * (first + second), rtol=1e-6)
  np.testing.assert_allclose(evaluation, main, rtol=1e-6)


@pytest.mark.parametrize(
  "system",
  [VGG16, GoogLeNet(GoogLeNetTower(), 1000, auxiliary=True)],
  ids=lambda x: type(x).__name__,
)
def test_a_step_of_training_keeps_the_form_of_its_state(system):
  batch = {"image": images(64, 64), "label": jax.ShapeDtypeStruct((2,), jnp.int32)}
  variables = shapes_of(system, images(64, 64))

  def loss(params, state, batch):
    variables = {"params": params, "state": state}
    return contract.loss(system, variables, batch, jax.random.key(0), step=0, train=True)

  (_, aux), gradients = jax.eval_shape(
    jax.value_and_grad(loss, has_aux=True), variables["params"], variables["state"], batch
  )
  assert {"params": gradients, "state": aux.state} == variables
