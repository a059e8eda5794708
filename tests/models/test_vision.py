"""ViT and ResNet: published sizes, positions, rollout, classifiers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import contract
from vlx.models.layers.position import resample_positions
from vlx.models.vision import classifier
from vlx.models.vision.resnet import STAGE_SIZES, ResNet, ResNetTower
from vlx.models.vision.vit import SIZES, VisionTransformer, ViT, attention_rollout, published_size


def count(system, batch):
  shapes = contract.shapes(system)
  return sum(x.size for x in jax.tree.leaves(shapes["params"]))


IMAGE224 = {"image": jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)}


# timm's counts, with a head of 1,000 classes; the paper's Table 1 has 86M, 307M (384 px), 632M.
@pytest.mark.parametrize(
  "name,expected",
  [
    ("S/16", 22_050_664),
    ("B/16", 86_567_656),
    ("B/32", 88_224_232),
    ("L/16", 304_326_632),
    ("H/14", 632_045_800),
  ],
)
def test_published_vit_parameters(name, expected):
  vit = ViT(VisionTransformer(image_size=224, **published_size(name)), 1000)
  assert count(vit, IMAGE224) == expected


# torchvision's counts.
@pytest.mark.parametrize(
  "depth,expected",
  [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032), (101, 44_549_160), (152, 60_192_808)],
)
def test_published_resnet_parameters(depth, expected):
  assert count(ResNet(ResNetTower(*STAGE_SIZES[depth]), 1000), IMAGE224) == expected


TINY = dict(image_size=16, patch_size=4, width=16, depth=2, num_heads=2, mlp_dim=32)


def test_published_sizes_have_heads_of_64():
  assert all(s["width"] // s["num_heads"] in (64, 80) for s in SIZES.values())


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_vit_takes_other_resolutions(pool):
  tower = VisionTransformer(**TINY, pool=pool)
  params = jax.jit(tower.init)(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
  pooled, tokens = jax.jit(tower.apply)(params, jnp.ones((2, 24, 32, 3)))
  assert pooled.shape == (2, 16)
  assert tokens.shape == (2, 6 * 8 + (pool == "cls"), 16)
  with pytest.raises(ValueError, match="do not tile"):
    tower.apply(params, jnp.ones((1, 18, 16, 3)))


def test_linear_resampling_keeps_a_plane_and_cubic_a_constant():
  rows, columns = np.mgrid[:6, :5]
  plane = jnp.asarray((3 * rows - 2 * columns + 1.0).reshape(1, 30, 1), jnp.float32)
  y, x = np.linspace(0, 5, 11)[:, None], np.linspace(0, 4, 15)[None]  # corners on corners
  found = resample_positions(plane, (6, 5), (11, 15), "linear")[0, :, 0].reshape(11, 15)
  np.testing.assert_allclose(found, 3 * y - 2 * x + 1, atol=1e-5)
  found = resample_positions(jnp.ones((1, 31, 1)), (6, 5), (11, 15), "cubic")
  np.testing.assert_allclose(found, np.ones((1, 1 + 11 * 15, 1)), atol=1e-6)


def test_stem_keeps_the_grid():
  tower = VisionTransformer(**TINY, pool="mean", stem=(8, 16))
  params = jax.jit(tower.init)(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
  _, tokens = jax.jit(tower.apply)(params, jnp.zeros((1, 16, 16, 3)))
  assert tokens.shape == (1, 16, 16)


def test_bfloat16_computes_in_bfloat16_and_keeps_parameters_in_float32():
  tower = VisionTransformer(**TINY, dtype="bfloat16")
  params = jax.jit(tower.init)(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
  pooled, _ = jax.jit(tower.apply)(params, jnp.ones((1, 16, 16, 3)))
  assert pooled.dtype == jnp.bfloat16
  assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}


def test_rollout_rows_sum_to_one_and_identity_attention_is_identity():
  weights = jax.nn.softmax(
    jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, 4, 5, 5)), jnp.float32)
  )
  np.testing.assert_allclose(attention_rollout(weights).sum(-1), 1.0, rtol=1e-5)
  identity = jnp.broadcast_to(jnp.eye(5), (3, 2, 4, 5, 5))
  np.testing.assert_allclose(attention_rollout(identity), identity[0, :, 0], atol=1e-6)


def test_rollout_multiplies_later_layers_from_the_left():
  """Layer 1 moves token 1 to 0, layer 2 moves token 0 to 2: 2 looks at 1 only through both."""
  first = jnp.eye(3).at[0].set(jnp.array([0.0, 1.0, 0.0]))
  second = jnp.eye(3).at[2].set(jnp.array([1.0, 0.0, 0.0]))
  rollout = attention_rollout(jnp.stack([first, second])[:, None, None])[0]
  np.testing.assert_allclose(rollout[2], [0.25, 0.25, 0.5])


def batch():
  rng = np.random.default_rng(0)
  return {
    "image": jnp.asarray(rng.normal(size=(8, 16, 16, 3)), jnp.float32),
    "label": jnp.asarray(rng.integers(0, 5, 8)),
  }


@pytest.mark.parametrize(
  "system",
  [
    ViT(VisionTransformer(**TINY), 5),
    ResNet(ResNetTower((1, 1), False, 8, stem="cifar"), 5),
    ViT(VisionTransformer(**TINY, backbone=ResNetTower((1, 1), False, 8, stem="cifar")), 5),
  ],
)
def test_classifiers_fit_a_batch(system):
  """A few steps of gradient descent on one batch classify it: the gradient is that of the loss."""
  data, variables = batch(), contract.init(system)

  @jax.jit
  def step(variables):
    def loss(params):
      return contract.loss(
        system, {**variables, "params": params}, data, jax.random.key(0), step=0, train=True
      )

    (value, aux), grads = jax.value_and_grad(loss, has_aux=True)(variables["params"])
    params = jax.tree.map(lambda p, g: p - 0.1 * g, variables["params"], grads)
    return {"params": params, "state": aux.state}, value, aux.metrics["accuracy"]

  # A head of zeros says every class is as likely: log 5.
  first = step(variables)[1]
  if isinstance(system, ViT):
    np.testing.assert_allclose(first, np.log(5), rtol=1e-6)
  for _ in range(100):
    variables, value, accuracy = step(variables)
  assert value < 0.1 and accuracy == 1.0
  assert jax.jit(system.class_logits)(variables, data["image"]).shape == (8, 5)


def test_batch_statistics_are_state_and_move_only_in_training():
  system = ResNet(ResNetTower((1,), False, 8, stem="cifar"), 5)
  variables = contract.init(system)
  moved = {}
  loss = jax.jit(
    lambda v, train: contract.loss(system, v, batch(), jax.random.key(0), step=0, train=train),
    static_argnums=1,
  )
  for train in (False, True):
    _, aux = loss(variables, train)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), aux.state, variables["state"])
    moved[train] = not all(jax.tree.leaves(same))
  assert moved == {False: False, True: True}


def test_the_hybrids_patches_are_of_the_backbones_map():
  """Its tokens are those of a plain transformer whose image is that map; rollout finds its
  statistics.
  """
  backbone = ResNetTower((1,), False, 3, stem="cifar")  # a map of three channels, as an image's
  system = ViT(VisionTransformer(**TINY, backbone=backbone), 5)
  variables, image = contract.init(system), batch()["image"]
  own = {
    "params": variables["params"]["tower"],
    **{k: v["tower"] for k, v in variables["state"].items()},
  }
  _, features = jax.jit(backbone.apply)({k: v["backbone"] for k, v in own.items()}, image)
  plain = VisionTransformer(**TINY)
  rest = {k: v for k, v in own["params"].items() if k != "backbone"}
  np.testing.assert_allclose(
    jax.jit(system.tower.apply)(own, image)[1],
    jax.jit(plain.apply)({"params": rest}, features)[1],
    atol=1e-6,
  )
  assert jax.jit(system.attention_maps)(variables, {"image": image}).shape == (8, 4, 4)


def test_label_smoothing_has_its_known_value():
  smooth = ViT(VisionTransformer(**TINY), 5, label_smoothing=0.2, head_bias=0.0)
  variables = contract.init(smooth)
  # Logits (a, 0, 0, 0, 0) for label 0: -(0.84 log p₀ + 4·0.04 log p₁).
  variables["params"]["head"]["bias"] = jnp.array([2.0, 0, 0, 0, 0])
  data = {**batch(), "label": jnp.zeros(8, jnp.int32)}
  value, _ = jax.jit(
    lambda v: contract.loss(smooth, v, data, jax.random.key(0), step=0, train=False)
  )(variables)
  total = np.exp(2.0) + 4
  expected = -(0.84 * np.log(np.exp(2.0) / total) + 0.16 * np.log(1 / total))
  np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_an_image_of_two_labels():
  """The loss is least, log 2, where the two have half each; right is who has both on top, in
  either order.
  """
  logits = jnp.array([[9.0, -9.0, 9.0, -9.0], [2.0, 5.0, 4.0, 3.0]])
  label = jnp.array([[2, 0], [1, 3]])
  np.testing.assert_allclose(
    classifier.cross_entropy(logits[:1], label[:1], 0.0), np.log(2), rtol=1e-6
  )
  slope = jax.grad(lambda x: classifier.cross_entropy(x, label[:1], 0.0).sum())(
    jnp.log(jnp.array([[0.5, 1e-9, 0.5, 1e-9]]))
  )
  np.testing.assert_allclose(slope, 0.0, atol=1e-6)
  assert classifier.is_correct(logits, label).tolist() == [True, False]
  np.testing.assert_allclose(
    classifier.cross_entropy(logits, label, 0.1),
    (
      classifier.cross_entropy(logits, label[:, 0], 0.1)
      + classifier.cross_entropy(logits, label[:, 1], 0.1)
    )
    / 2,
    rtol=1e-6,
  )
