"""Names of OpenAI's discrete VAE: those of the modules in encoder.pkl and decoder.pkl, set apart by
a prefix.

The two files hold equal names, "blocks.input.w"; a reader puts "encoder." and "decoder." before
them.
"""

import re
from collections.abc import Mapping

from vlx.models.generation.dvae import DVAE
from vlx.pretrained import fields
from vlx.pretrained.tables import CheckpointMap, Row

_KERNEL = ("o i h w -> h w i o", {})


def from_shapes(shapes: Mapping[str, tuple[int, ...]]) -> CheckpointMap | None:
  """The system of both files together, by their names; None for another family's."""
  block = r"encoder\.blocks\.group_(\d+)\.block_"
  if not any(re.match(block, name) for name in shapes):
    return None
  groups = fields.count(shapes, block, most=fields.MAX_STAGES)
  blocks = fields.count(shapes, r"encoder\.blocks\.group_1\.block_(\d+)\.")
  width, *_ = fields.shape(shapes, "encoder.blocks.input.w", 4)
  fields.divides("encoder.blocks.input.w: the width", width, "the narrowing of a block,", 4)
  code_dim, num_codes, *_ = fields.shape(shapes, "decoder.blocks.input.w", 4)
  return CheckpointMap(DVAE(256, width, num_codes, code_dim, groups, blocks), rows(groups, blocks))


def preprocess(system: DVAE, config: Mapping | None = None) -> str:
  """Ops on images of the authors' notebook; the shorter side there is no longer than the image's
  own.
  """
  del config
  return f"decode|resize_small({system.image_size})|central_crop({system.image_size})|normalize"


def rows(num_groups: int = 4, blocks_per_group: int = 2) -> list[Row]:
  """Rows for `dall_e.Encoder`, `dall_e.Decoder` and `vlx.models.generation.dvae.DVAE`."""
  return [
    *half_rows("encoder", num_groups, blocks_per_group),
    *half_rows("decoder", num_groups, blocks_per_group),
  ]


def half_rows(half: str, num_groups: int, blocks_per_group: int) -> list[Row]:
  """Rows for the "encoder" or the "decoder"."""
  out = _convolution(half, "input", "input")
  if half == "decoder":
    out = [
      Row("decoder.blocks.input.w", "params/decoder/codebook", ("o i 1 1 -> i o", {})),
      Row("decoder.blocks.input.b", "params/decoder/codebook_bias"),
    ]
  for group in range(num_groups):
    for block in range(blocks_per_group):
      public, ours = f"group_{group + 1}.block_{block + 1}", f"group{group}_block{block}"
      for i in range(1, 5):
        out += _convolution(half, f"{public}.res_path.conv_{i}", f"{ours}/conv{i}")
      if block == 0 and (group > 0 or half == "decoder"):  # where the width changes
        out += _convolution(half, f"{public}.id_path", f"{ours}/shortcut")
  return out + _convolution(half, "output.conv", "output")


def _convolution(half: str, public: str, ours: str) -> list[Row]:
  return [
    Row(f"{half}.blocks.{public}.w", f"params/{half}/{ours}/kernel", _KERNEL),
    Row(f"{half}.blocks.{public}.b", f"params/{half}/{ours}/bias"),
  ]
