"""LPIPS's layers above VGG-16: `vgg.pth` of the package lpips, which latent diffusion's code takes too."""

from collections.abc import Mapping

from vlx.core.errors import UserError
from vlx.models.vision.lpips import LPIPS
from vlx.models.vision.vgg import CONVOLUTIONS, VGG, VGGTower
from vlx.pretrained import fields
from vlx.pretrained.tables import CheckpointMap, Row

ABSENT = (
  "holds LPIPS's layers without the network below them; start a run from it by config.init: {'source': …, 'put':"
  " 'perceptual', 'without': ('network/.*',)}"
)
CHANNELS = (64, 128, 256, 512, 512)  # of VGG-16's five maps


def from_shapes(shapes: Mapping[str, tuple[int, ...]]) -> CheckpointMap | None:
  """The distance of such a file; None for another's.

  Raises:
    UserError: for layers above another network.
  """
  names = [f"lin{i}.model.1.weight" for i in range(len(CHANNELS))]
  if names[0] not in shapes:
    return None
  found = tuple(fields.shape(shapes, name, 4)[1] for name in names)
  if found != CHANNELS or len(shapes) != len(CHANNELS):
    raise UserError(f"LPIPS's layers above another network than VGG-16, whose maps have {CHANNELS}")
  system = LPIPS(VGG(VGGTower(CONVOLUTIONS[16]), 1000), CHANNELS, imagenet=True)
  rows = [Row(name, f"params/linear{i}", ("1 d 1 1 -> d", {})) for i, name in enumerate(names)]
  return CheckpointMap(system, rows)


def preprocess(system: LPIPS, config: Mapping | None = None) -> str:
  """Images of any size."""
  del system, config
  return "decode|normalize"
