"""Show and Tell.

  python -m vlx.train --config=configs/show_and_tell.py:VARIANT --workdir=runs/show_and_tell

`ablation` and `beams` are what experiments/ vary, `finetune` is coco's second phase, `ensemble` is of
finished runs.
"""

import ml_collections

from configs.common import captioning
from vlx.core.config import finalize, select_variant


def get_config(variant: str = "scenes") -> ml_collections.ConfigDict:
  return finalize(select_variant(VARIANTS, variant)())


def _model(config, encoder, **fields):
  config.system = "vlx.models.captioning.show_and_tell.ShowAndTell"
  text_length = config.evaluators.captions.max_length + 1
  config.model = dict(
    encoder=encoder, vocab_size=config.tokenizer.vocab_size, text_length=text_length, **fields
  )
  return config


def smoke() -> ml_collections.ConfigDict:
  """Seconds; the tests use it."""
  config = _model(
    captioning.small_emoji(),
    dict(captioning.SMALL_ENCODER, stem=(8, 16), width=32, depth=1, mlp_dim=64),
    embed_dim=32,
    hidden_dim=32,
    dropout=0.0,
  )
  config.steps = 100
  config.data.batch_size = 32
  config.log_every = 1
  config.optim.lr = 1e-2
  return config


def emoji() -> ml_collections.ConfigDict:
  config = _model(
    captioning.emoji(),
    captioning.SMALL_ENCODER,
    embed_dim=128,
    hidden_dim=256,
    dropout=0.0,
    init_range=0.2,
  )
  config.optim.update(dict(lr=5e-3, weight_decay=0.0))
  return config


def scenes() -> ml_collections.ConfigDict:
  """Above the frozen image tower of a run of configs/clip.py:scenes: what is pooled tells images
  apart.
  """
  config = _model(
    captioning.scenes(),
    captioning.SCENES_ENCODER,
    embed_dim=128,
    hidden_dim=256,
    dropout=0.0,
    init_range=0.2,
  )
  config.init = (dict(source="runs/clip_scenes", take="image", put="encoder"),)
  config.steps = 3000
  config.optim.update(dict(lr=5e-3, weight_decay=0.0, rules=(captioning.FREEZE,)))
  return config


def language_model() -> ml_collections.ConfigDict:
  """What can be said of a scene without seeing it: the baseline of `scenes`."""
  config = scenes()
  config.model.encoder = dict(
    captioning.SMALL_ENCODER, image_size=64, stem=(8, 8, 8), width=16, depth=1, mlp_dim=16
  )
  config.init = ()
  for name in ("preprocess", "image_transform"):
    config.data[name] = config.data[name].replace("|normalize", "|hide|normalize")
  config.steps = 1200
  config.optim.rules = ()
  return config


def ablation() -> ml_collections.ConfigDict:
  """Longer than Show, Attend and Tell's: it takes more steps until the image is used at all."""
  config = captioning.ablation(scenes(), "runs/show_and_tell")
  config.steps = 600
  return config


def beams() -> ml_collections.ConfigDict:
  """The same, decoded with one beam and with twenty too."""
  config = ablation()
  for beam_size in (1, 20):
    config.evaluators[f"captions_{beam_size}"] = {
      **config.evaluators.captions.to_dict(),
      "beam_size": beam_size,
      "splits": ("val",),
    }
  return config


def ensemble() -> ml_collections.ConfigDict:
  """Three runs of `scenes` with other seeds, gathered and evaluated without training any further.

  Others: --config.model.member_1.source=RUN; up to eight in a config of your own.
  """
  config = scenes()
  config.system = "vlx.models.captioning.ensemble.Ensemble"
  config.model = {f"member_{i}": dict(source=f"runs/show_and_tell_{i}") for i in (1, 2, 3)}
  config.tokenizer.kind = "parts"
  config.init = ()
  config.steps = 0
  config.optim.update(dict(rules=(), ema_decay=0.0))
  return config


def _paper(source: str, vocab_size: int, min_count: int) -> ml_collections.ConfigDict:
  """GoogLeNet, frozen; SGD as in im2txt's configuration.py: learning rate 2, gradients clipped at
  5.

  Start the tower at a classifier's:
  `--config.init='({"source": "googlenet.pth", "take": "tower", "put": "encoder"},)'`.
  """
  config = _model(
    captioning.photographs(source, vocab_size, min_count, "random_crop(224)|flip_lr", "normalize"),
    dict(batch_norm=True),
  )
  config.data.batch_size = 32
  config.optim.update(
    dict(name="sgd", lr=2.0, b1=0.0, schedule="step", clip_norm=5.0, rules=(captioning.FREEZE,))
  )
  return config


def coco() -> ml_collections.ConfigDict:
  """COCO with im2txt's schedule: halved every 8 epochs of 586,363 captions, a million steps."""
  config = _paper("coco:.", vocab_size=12_000, min_count=4)
  config.steps = 1_000_000
  config.optim.decay_every = 8 * 586_363 // 32
  return config


def finetune() -> ml_collections.ConfigDict:
  """Two million steps more, the tower with the rest, at 5e-4, from the run that `init` names."""
  config = coco()
  config.init = (dict(source="runs/show_and_tell"),)
  config.steps = 2_000_000
  config.optim.update(dict(lr=5e-4, schedule="constant", rules=()))
  return config


def _flickr(captions: int, vocab_size: int) -> ml_collections.ConfigDict:
  """50 epochs of so many captions; words seen five times (§4.3.1)."""
  config = _paper("flickr:.", vocab_size=vocab_size, min_count=5)
  config.steps = 50 * captions // 32
  config.optim.decay_every = 8 * captions // 32
  return config


def flickr8k() -> ml_collections.ConfigDict:
  """6,000 images of five captions."""
  return _flickr(30_000, vocab_size=4_000)


def flickr30k() -> ml_collections.ConfigDict:
  """29,000 images of five captions, as Karpathy and Fei-Fei split them. How it does on Flickr8k
  (§4.3.3): `python -m vlx.evaluate --model=runs/show_and_tell --data=flickr:PATH --split=test`.
  """
  return _flickr(145_000, vocab_size=8_000)


def folder() -> ml_collections.ConfigDict:
  """Your own images: --config.data.source=folder:PATH, or another of vlx.data.sources."""
  return _model(
    captioning.folder(),
    captioning.FOLDER_ENCODER,
    embed_dim=128,
    hidden_dim=256,
    dropout=0.1,
    init_range=0.2,
  )


VARIANTS = dict(
  smoke=smoke,
  emoji=emoji,
  scenes=scenes,
  language_model=language_model,
  ablation=ablation,
  beams=beams,
  ensemble=ensemble,
  folder=folder,
  flickr8k=flickr8k,
  flickr30k=flickr30k,
  coco=coco,
  finetune=finetune,
  paper=coco,
)
