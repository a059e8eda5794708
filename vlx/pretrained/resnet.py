"""Names of ResNet in torchvision's files (resnet50-0676ba61.pth, resnet50-11ad3fa6.pth, …)."""

from collections.abc import Mapping

from vlx.models.vision.classifier import IMAGENET
from vlx.models.vision.resnet import ResNet, ResNetTower
from vlx.pretrained import fields
from vlx.pretrained.tables import CheckpointMap, Row
from vlx.pretrained.torch_rows import batch_norm, convolution, dense
from vlx.pretrained.torchvision_ops import torchvision_ops


def rows(stage_sizes: tuple[int, ...], bottleneck: bool) -> list[Row]:
  """Rows for `ResNet(ResNetTower(stage_sizes, bottleneck), …)`."""
  out = convolution("conv1", "tower/conv") + batch_norm("bn1", "tower/norm")
  for stage, blocks in enumerate(stage_sizes):
    for block in range(blocks):
      public, ours = f"layer{stage + 1}.{block}", f"tower/stage{stage}_block{block}"
      for i in range(1, 4 if bottleneck else 3):
        out += convolution(f"{public}.conv{i}", f"{ours}/conv{i}")
        out += batch_norm(f"{public}.bn{i}", f"{ours}/norm{i}")
      if block == 0 and (stage > 0 or bottleneck):  # where the shape changes
        out += convolution(f"{public}.downsample.0", f"{ours}/shortcut")
        out += batch_norm(f"{public}.downsample.1", f"{ours}/shortcut_norm")
  return out + dense("fc", "head")


def from_shapes(shapes: Mapping[str, tuple[int, ...]]) -> CheckpointMap | None:
  """The system of one of torchvision's files, by its names; None for another's."""
  if (
    not {"conv1.weight", "layer1.0.conv1.weight", "layer1.0.bn1.weight", "fc.weight"}
    <= shapes.keys()
  ):
    return None
  stages = fields.count(shapes, r"layer(\d+)\.0\.", most=fields.MAX_STAGES)
  stage_sizes = tuple(fields.count(shapes, rf"layer{i + 1}\.(\d+)\.") for i in range(stages))
  bottleneck = "layer1.0.conv3.weight" in shapes
  tower = ResNetTower(stage_sizes, bottleneck, width=fields.shape(shapes, "conv1.weight", 4)[0])
  classes = fields.shape(shapes, "fc.weight", 2)[0]
  return CheckpointMap(ResNet(tower, classes), rows(stage_sizes, bottleneck))


def preprocess(system: ResNet, config: Mapping | None = None) -> str:
  """torchvision's ops on images."""
  del system, config
  return torchvision_ops(*IMAGENET)
