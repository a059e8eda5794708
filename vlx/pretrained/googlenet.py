"""Names of GoogLeNet in torchvision's file (googlenet-1378be20.pth)."""

from collections.abc import Mapping

from vlx.models.vision.inception import AUXILIARY, BLOCKS, GoogLeNet, GoogLeNetTower
from vlx.pretrained import fields
from vlx.pretrained.tables import CheckpointMap, Row
from vlx.pretrained.torch_rows import batch_norm, convolution, dense
from vlx.pretrained.torchvision_ops import torchvision_ops

STEM = {"conv1": "conv1", "conv2": "conv2_reduce", "conv3": "conv2"}
BRANCHES = {
  "branch1": "1x1",
  "branch2.0": "3x3_reduce",
  "branch2.1": "3x3",
  "branch3.0": "5x5_reduce",
  "branch3.1": "5x5",
  "branch4.1": "projection",
}


def rows(auxiliary: bool) -> list[Row]:
  """Rows for `GoogLeNet(GoogLeNetTower(), …, auxiliary)`.

  The file has the auxiliary classifiers (not trained, says torchvision) whether the system has them
  or not.
  """
  out = []
  for public, ours in STEM.items():
    out += _block(public, f"tower/{ours}")
  for block in BLOCKS:
    for public, ours in BRANCHES.items():
      out += _block(f"inception{block}.{public}", f"tower/inception{block}_{ours}")
  out += dense("fc", "head")
  for public, ours in zip(("aux1", "aux2"), AUXILIARY):
    head = [
      *_block(f"{public}.conv", f"{ours}/conv"),
      *dense(f"{public}.fc1", f"{ours}/fc", ("o (c h w) -> (h w c) o", {"h": 4, "w": 4})),
      *dense(f"{public}.fc2", f"{ours}/head"),
    ]
    out += head if auxiliary else [Row(row.public, None) for row in head]
  return out


def _block(public: str, ours: str) -> list[Row]:
  return convolution(f"{public}.conv", f"{ours}/conv") + batch_norm(f"{public}.bn", f"{ours}/norm")


def from_shapes(shapes: Mapping[str, tuple[int, ...]]) -> CheckpointMap | None:
  """The system of torchvision's file, by its names; None for another's. Its auxiliary classifiers are left
  out.
  """
  if not {"conv1.conv.weight", "inception3a.branch1.conv.weight", "fc.weight"} <= shapes.keys():
    return None
  tower = GoogLeNetTower(width=fields.shape(shapes, "conv1.conv.weight", 4)[0])
  return CheckpointMap(
    GoogLeNet(tower, fields.shape(shapes, "fc.weight", 2)[0]), rows(auxiliary=False)
  )


def preprocess(system: GoogLeNet, config: Mapping | None = None) -> str:
  """torchvision's ops on images, but for ImageNet's normalisation, which its network undoes."""
  del system, config
  return torchvision_ops()
