"""Show, Attend and Tell.

  python -m vlx.train --config=configs/show_attend_tell.py:VARIANT --workdir=runs/show_attend_tell

`hard` is scenes by hard attention, `ablation` what experiments/ vary, `finetune` coco with the
tower trained along, which the paper did not do.
"""

import ml_collections

from configs.common import captioning
from vlx.core.config import finalize, select_variant
from vlx.models.vision.vgg import CONVOLUTIONS

# One draw at a word says little: the penalty on where the expectation was is soft attention's
# alone.
HARD = dict(selection="hard", doubly_stochastic=0.0)


def get_config(variant: str = "scenes") -> ml_collections.ConfigDict:
  return finalize(select_variant(VARIANTS, variant)())


def _model(config, encoder, **fields):
  config.system = "vlx.models.captioning.show_attend_tell.ShowAttendTell"
  text_length = config.evaluators.captions.max_length + 1
  config.model = dict(
    encoder=encoder, vocab_size=config.tokenizer.vocab_size, text_length=text_length, **fields
  )
  return config


def _small(config, encoder, **fields):
  return _model(
    config,
    encoder,
    initialization="lecun",
    **{**dict(embed_dim=128, hidden_dim=256, attention_dim=128, dropout=0.1), **fields},
  )


def smoke() -> ml_collections.ConfigDict:
  """Seconds; the tests use it."""
  config = _small(
    captioning.small_emoji(),
    dict(captioning.SMALL_ENCODER, stem=(8, 16), width=32, depth=1, mlp_dim=64),
    embed_dim=32,
    hidden_dim=32,
    attention_dim=16,
    dropout=0.0,
  )
  config.steps = 100
  config.data.batch_size = 32
  config.log_every = 1
  config.optim.lr = 1e-2
  return config


def emoji() -> ml_collections.ConfigDict:
  return _small(captioning.emoji(), captioning.SMALL_ENCODER)


def scenes() -> ml_collections.ConfigDict:
  config = _small(captioning.scenes(), captioning.SCENES_ENCODER, doubly_stochastic=0.0)
  config.evaluators.pointing_game = dict(
    type="vlx.evaluate.tasks.pointing_game.PointingGame", splits=("val", "combo", "concept")
  )
  config.steps = 3000
  config.optim.lr = 4e-3
  return config


def hard() -> ml_collections.ConfigDict:
  config = scenes()
  config.model.update(HARD)
  return config


def ablation() -> ml_collections.ConfigDict:
  return captioning.ablation(scenes(), "runs/show_attend_tell")


def _paper(source: str, vocab_size: int, min_count: int) -> ml_collections.ConfigDict:
  """VGG-19's conv5_4, frozen; sizes of the released code's evaluate_coco.py, patience aside.

  Start the tower at a classifier's: `--config.init='({"source": "vgg19.pth", "take": "tower",
  "put": "encoder"},)'`.
  """
  config = _model(
    captioning.photographs(source, vocab_size, min_count, "central_crop(224)", captioning.IMAGENET),
    dict(convolutions=CONVOLUTIONS[19]),
    embed_dim=512,
    hidden_dim=1800,
    attention_dim=512,
    annotation_layers=2,
    init_layers=2,
    deep_output_tanh=True,
    zero_start=True,
  )
  config.data.batch_size = 64
  config.optim.update(dict(lr=2e-4, schedule="constant", clip_norm=0.0, rules=(captioning.FREEZE,)))
  return config


def coco() -> ml_collections.ConfigDict:
  """Adam at 2e-4, batches of 64; ends by BLEU on the validation split (§4.3), at the latest after 30
  epochs of 414,113 captions.

  As often as the released code looks, and for as long as it waits (evaluate_coco.py: every 2,000
  steps, ten times); here by greedy captions, for beams of 20 take longer than the steps between.
  """
  config = _paper("coco:.", vocab_size=10_000, min_count=1)
  config.steps = 30 * 414_113 // 64
  greedy = dict(splits=("val",), beam_size=1, every=2000)
  config.evaluators.bleu = {**config.evaluators.captions.to_dict(), **greedy}
  config.checkpoint.update(dict(best="bleu/val/bleu4", patience=10 * 2000))
  return config


def coco_hard() -> ml_collections.ConfigDict:
  """By the released code's rule (capgen.py, `RL_sumCost`): reward and entropy are summed over the
  batch where the likelihood is its mean, so that at its batch each weighs so many times more.
  """
  config = coco()
  batch = config.data.batch_size
  config.model.update(
    dict(
      HARD,
      reward="mean",
      reward_scale=0.1 * batch,
      entropy_weight=0.002 * batch,
      expected_for="batch",
    )
  )
  return config


def finetune() -> ml_collections.ConfigDict:
  """From the run that `init` names."""
  config = coco()
  config.init = (dict(source="runs/show_attend_tell"),)
  config.optim.update(dict(lr=2e-5, rules=()))
  return config


def flickr30k() -> ml_collections.ConfigDict:
  """As `coco`, by Adam (§4.3), for 30 epochs of 145,000 captions at the most."""
  config = coco()
  config.data.source = "flickr:."
  config.steps = 30 * 145_000 // 64
  return config


def flickr8k() -> ml_collections.ConfigDict:
  """RMSProp (§4.3), with the released code's constants (optimizers.py); 50 epochs of 30,000
  captions.
  """
  config = _paper("flickr:.", vocab_size=10_000, min_count=1)
  config.steps = 50 * 30_000 // 64
  config.optim.update(dict(name="rmsprop", lr=1e-4, b1=0.9, b2=0.95, eps=1e-4))
  return config


def folder() -> ml_collections.ConfigDict:
  """Your own images: --config.data.source=folder:PATH, or another of vlx.data.sources."""
  return _small(captioning.folder(), captioning.FOLDER_ENCODER)


VARIANTS = dict(
  smoke=smoke,
  emoji=emoji,
  scenes=scenes,
  hard=hard,
  ablation=ablation,
  folder=folder,
  flickr8k=flickr8k,
  flickr30k=flickr30k,
  coco=coco,
  coco_hard=coco_hard,
  finetune=finetune,
  paper=coco,
)
