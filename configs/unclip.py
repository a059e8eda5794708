"""unCLIP, all its stages: nothing is trained.

python -m vlx.train --config=configs/unclip.py --workdir=runs/unclip
python -m vlx.generate --workdir=runs/unclip --prompt="red apple" --num=16
"""

import ml_collections

from configs.common import unclip
from vlx.core.config import finalize, part_from, select_variant


def get_config(variant: str = "emoji") -> ml_collections.ConfigDict:
  return finalize(select_variant(VARIANTS, variant)())


def smoke() -> ml_collections.ConfigDict:
  """Seconds; the tests use it. Nothing of it is trained."""
  config = unclip.emoji(32, "configs/clip.py:smoke")
  config.system = "vlx.models.generation.unclip.UnCLIP"
  names = dict(prior="unclip_prior", decoder="unclip_decoder", first="unclip_upsampler")
  config.model = {part: part_from(f"configs/{name}.py:smoke") for part, name in names.items()}
  config.init = (dict(source="random", put=""),)
  config.steps = 0
  config.evaluators = {}
  return config


def emoji() -> ml_collections.ConfigDict:
  """64x64 images in three stages."""
  config = unclip.emoji(32, "configs/clip.py:demo")
  config.system = "vlx.models.generation.unclip.UnCLIP"
  config.model = dict(
    prior=dict(source="runs/unclip_prior"),
    decoder=dict(source="runs/unclip_decoder"),
    first=dict(source="runs/unclip_first"),
    second=dict(source="runs/unclip_second"),
  )
  config.steps = 0
  config.evaluators = dict(
    generation=dict(
      type="vlx.evaluate.tasks.generation.Generation",
      splits=("train", "combo", "concept"),
      sampler={},
    )
  )
  return config


def folder() -> ml_collections.ConfigDict:
  """Of stages that were trained on your own images: --config.data.source=folder:PATH."""
  config = unclip.of_folder(emoji())
  config.model = {name: dict(source=f"runs/unclip_{name}_folder") for name in config.model}
  return config


VARIANTS = dict(smoke=smoke, folder=folder, emoji=emoji)
