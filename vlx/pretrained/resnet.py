"""Names of ResNet in torchvision's files (resnet50-0676ba61.pth, resnet50-11ad3fa6.pth, …)."""

from vlx.pretrained.tables import Row
from vlx.pretrained.torch_rows import batch_norm, convolution, dense


def rows(stage_sizes: tuple[int, ...], bottleneck: bool) -> list[Row]:
  """Of `ResNet(ResNetTower(stage_sizes, bottleneck), …)`."""
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
