"""VGG, GoogLeNet and ResNet against torchvision: tables of names, and recorded outputs through
them.
"""

import math
import pathlib

import jax
import numpy as np
import pytest
from flax import traverse_util
from safetensors import numpy as safetensors

from tests import contract
from tests.parity.recorded import as_tree
from vlx.models.layers import apply
from vlx.models.vision.inception import PAPER, GoogLeNet, GoogLeNetTower
from vlx.models.vision.resnet import STAGE_SIZES, ResNet, ResNetTower
from vlx.models.vision.vgg import CONVOLUTIONS, VGG, VGGTower
from vlx.pretrained import googlenet, resnet, tables, vgg

HERE = pathlib.Path(__file__).parent
PUBLISHED = {
  **{f"vgg{n}": (VGG(VGGTower(c), 1000), vgg.rows(c)) for n, c in CONVOLUTIONS.items()},
  **{
    f"resnet{n}": (ResNet(ResNetTower(*s), 1000), resnet.rows(*s)) for n, s in STAGE_SIZES.items()
  },
  "googlenet": (GoogLeNet(GoogLeNetTower(), 1000, auxiliary=True), googlenet.rows(True)),
  "googlenet without auxiliaries": (GoogLeNet(GoogLeNetTower(), 1000), googlenet.rows(False)),
}
NARROW = {
  "vgg16": VGG(VGGTower(CONVOLUTIONS[16], width=4), 5, hidden=12),
  "vgg19": VGG(VGGTower(CONVOLUTIONS[19], width=2), 5, hidden=12),
  "resnet18": ResNet(ResNetTower(*STAGE_SIZES[18], width=4), 5),
  "resnet50": ResNet(ResNetTower(*STAGE_SIZES[50], width=4), 5),
  "googlenet": GoogLeNet(GoogLeNetTower(width=4), 5, auxiliary=True),
  "googlenet_paper": GoogLeNet(GoogLeNetTower(width=4, **PAPER), 5, auxiliary=True),
}
# Outputs on the way: by networks and torchvision's names, by ours. GoogLeNet's are its `maps`.
ON_THE_WAY = {
  "vgg16/features.10": "tower/conv3_1",
  "vgg16/features.28": "tower/conv5_3",
  "vgg19/features.34": "tower/conv5_4",
  "resnet/layer1.0": "tower/stage0_block0",
  "resnet/layer2.0": "tower/stage1_block0",
  "resnet/layer3.1": "tower/stage2_block1",
  "resnet/layer4.1": "tower/stage3_block1",
  "googlenet/conv3": "tower/conv2",
}
ANNOTATIONS = {"vgg16": "features.29", "vgg19": "features.35"}  # what the systems' `features` gives


def named(variables):
  return traverse_util.flatten_dict(variables, sep="/")


@pytest.mark.parametrize("name", PUBLISHED)
def test_table_covers_exactly_the_published_names_and_shapes(name):
  system, rows = PUBLISHED[name]
  ours = contract.shapes(system)
  lines = (HERE / "names" / f"{name.split()[0]}.txt").read_text().splitlines()
  published = {name: tuple(map(int, shape)) for name, *shape in map(str.split, lines)}

  assert len({row.public for row in rows}) == len(rows)
  assert sorted(row.name for row in rows if row.name) == sorted(named(ours))
  unread = {row.public for row in rows if not row.name}
  assert unread <= set(published)
  assert tables.public_shapes(rows, ours) == {k: v for k, v in published.items() if k not in unread}


def rows_of(name):
  tower = NARROW[name].tower
  if name.startswith("vgg"):
    rows = vgg.rows(tower.convolutions)
  elif name.startswith("resnet"):
    rows = resnet.rows(tower.stage_sizes, tower.bottleneck)
  else:
    rows = googlenet.rows(auxiliary=True)
  # no published file: torchvision's names, with biases for normalisation
  if name == "googlenet_paper":
    rows = [row for row in rows if ".bn." not in row.public] + [
      tables.Row(row.public.replace("weight", "bias"), row.name.replace("kernel", "bias"))
      for row in rows
      if row.public.endswith("conv.weight")
    ]
  return rows


def recorded(name):
  """(variables, {name: array} of the rest) of a fixture."""
  tensors = safetensors.load_file(HERE / f"{name}.safetensors")
  weights = {k.removeprefix("weights/"): v for k, v in tensors.items() if k.startswith("weights/")}
  wanted = contract.shapes(NARROW[name])
  shapes = {k: v.shape for k, v in weights.items()}
  variables = as_tree(tables.read(rows_of(name), wanted, shapes, weights.__getitem__), wanted)
  expected = {}
  for key, value in tensors.items():
    if not key.startswith("weights/"):
      is_map = value.ndim == 4 and key != "image"
      expected[key] = np.moveaxis(value, 1, -1) if is_map else value
  # torchvision's `transform_input`: its input is normalised by ImageNet's mean
  if name == "googlenet":
    mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    expected["image"] = (expected["image"] * std + mean - 0.5) / 0.5
  return variables, expected


def outputs(name, variables, image, train=False):
  """(what the fixtures record, by torchvision's names; every module's output, by its path; the new state).

  To be jitted with all that is not looked at thrown away.
  """
  system = NARROW[name]
  method = "all_logits" if isinstance(system, GoogLeNet) else "__call__"
  logits, state = system.network.apply(
    {"params": variables["params"], **variables["state"]},
    image,
    train=train,
    method=method,
    mutable=["intermediates", *variables["state"]],
    rngs={"dropout": jax.random.key(0)},
    capture_intermediates=lambda module, method: method in ("__call__", "maps"),
  )
  modules = {
    k.removesuffix("/__call__"): v[0] for k, v in named(state.pop("intermediates")).items()
  }
  out = {f"inception{block}": x for block, x in modules.pop("tower/maps", {}).items()}
  out |= (
    dict(zip(("logits", "aux1", "aux2"), logits)) if method == "all_logits" else {"logits": logits}
  )
  if name in ANNOTATIONS:
    out[ANNOTATIONS[name]] = apply.infer(
      system.network, variables, image, method=lambda network, image: network.tower(image)[1]
    )
  for public, ours in ON_THE_WAY.items():
    family, _, public = public.partition("/")
    if name.startswith(family) and ours in modules:
      out[public] = modules[ours]
  return out, modules, state


def assert_close(found, expected, tolerance=1e-5):
  found, expected = np.asarray(found), np.asarray(expected)
  assert found.shape == expected.shape
  assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("name", NARROW)
def test_outputs_are_torchvisions(name):
  variables, expected = recorded(name)
  keys = [key for key in expected if key.startswith("outputs/")]
  assert "outputs/logits" in keys and len(keys) >= 3

  @jax.jit
  def run(variables, image):
    out, _, _ = outputs(name, variables, image)
    return [out[key.removeprefix("outputs/")] for key in keys]

  for found, key in zip(run(variables, expected["image"]), keys):
    assert_close(found, expected[key])


@pytest.mark.parametrize("name, last", [("resnet50", "layer2.0"), ("googlenet", "conv3")])
def test_training_normalises_by_the_batch_and_its_statistics_are_torchvisions(name, last):
  """Up to a layer: normalisation by few pixels magnifies rounding, ours and torch's, the more
  the deeper.
  """
  variables, expected = recorded(name)
  kept = {public: ours for public, ours, _ in rows_of(name) if f"train/{public}" in expected}
  assert len(kept) >= 6

  @jax.jit
  def run(variables, image):
    out, modules, state = outputs(name, variables, image, train=True)
    before, after = named(variables["state"]), named(state)
    statistics = {}
    for public, ours in kept.items():
      old, new = (x[ours.removeprefix("state/")] for x in (before, after))
      if public.endswith("var"):  # torch keeps n/(n-1) times the variance that it divides by
        normalised = modules[ours.removeprefix("state/batch_stats/").removesuffix("/var")]
        count = math.prod(normalised.shape[:3])
        new = 0.9 * old + count / (count - 1) * (new - 0.9 * old)
      statistics[public] = new
    return {last: out[last], **statistics}

  for key, found in run(variables, expected["image"]).items():
    assert_close(found, expected[f"train/{key}"])
