"""Names of VGG in torchvision's files (vgg16-397923af.pth, vgg19-dcbb9e9d.pth, …)."""

from vlx.models.vision.vgg import GRID
from vlx.pretrained.tables import Row
from vlx.pretrained.torch_rows import convolution, dense


def rows(convolutions: tuple[int, ...]) -> list[Row]:
  """Of `VGG(VGGTower(convolutions), …)`.

  vgg16_features-amdegroot.pth has the same names, but what it holds for the classifier means nothing.
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
