"""Names of VGG in torchvision's files (vgg16-397923af.pth, vgg19-dcbb9e9d.pth, …)."""

import re
from collections.abc import Mapping

from vlx.models.vision.classifier import IMAGENET
from vlx.models.vision.vgg import GRID, VGG, VGGTower
from vlx.pretrained import fields
from vlx.pretrained.tables import CheckpointMap, Row
from vlx.pretrained.torch_rows import convolution, dense
from vlx.pretrained.torchvision_ops import torchvision_ops


def rows(convolutions: tuple[int, ...]) -> list[Row]:
  """Rows for `VGG(VGGTower(convolutions), …)`.

  vgg16_features-amdegroot.pth has the same names, but what it holds for the classifier means
  nothing.
  """
  out, index = [], 0
  for stage, count in enumerate(convolutions, 1):
    for i in range(1, count + 1):
      out += convolution(f"features.{index}", f"tower/conv{stage}_{i}", bias=True)
      index += 2  # a rectifier stands between
    index += 1  # a pooling
  height, width = GRID
  return out + [
    *dense("classifier.0", "fc6", ("o (c h w) -> (h w c) o", {"h": height, "w": width})),
    *dense("classifier.3", "fc7"),
    *dense("classifier.6", "head"),
  ]


def from_shapes(shapes: Mapping[str, tuple[int, ...]]) -> CheckpointMap | None:
  """The system of one of torchvision's files (without batch normalisation), by its names; None for
  another's.
  """
  kernels = {
    int(match[1]): shape
    for name, shape in shapes.items()
    if (match := re.fullmatch(r"features\.(\d{1,3})\.weight", name))
  }
  if not kernels or any(name.endswith("running_mean") for name in shapes):
    return None
  hidden, classes = (fields.shape(shapes, f"classifier.{i}.weight", 2)[0] for i in (0, 6))
  # A pooling stands where a rectifier is followed by nothing: the numbers jump by three.
  indices = sorted(kernels)
  ends = [i for i, following in zip(indices, [*indices[1:], indices[-1] + 3]) if following - i == 3]
  sizes = [sum(i <= end for i in indices) for end in ends]
  convolutions = tuple(b - a for a, b in zip([0, *sizes], sizes))
  tower = VGGTower(convolutions, width=fields.shape(shapes, "features.0.weight", 4)[0])
  return CheckpointMap(VGG(tower, classes, hidden), rows(convolutions))


def preprocess(system: VGG, config: Mapping | None = None) -> str:
  """torchvision's ops on images."""
  del system, config
  return torchvision_ops(*IMAGENET)
