"""The GAN on emoji; its players learn by rates of their own, and of the generator alone an
average is kept.
"""

from vlx.core.config import finalize
from vlx.train import defaults


def get_config():
  config = defaults.get_config()
  config.system = "tests.new_systems.gan.model.GAN"
  config.model = dict(vocab_size=800, text_length=12)
  config.data.update(
    dict(
      source="tfds:emoji",
      batch_size=32,
      image_transform="decode|resize(16)|normalize",
      preprocess='decode|resize(16)|cache|normalize|tokenize("caption", 12)|keep("image", "text", "text_mask")',
    )
  )
  config.tokenizer = dict(vocabulary="", vocab_size=800, fields=("caption",))
  config.optim.update(
    dict(
      lr=2e-3,
      b1=0.5,
      clip_norm=0.0,
      schedule="constant",
      players=dict(generator=dict(lr=1e-3, ema_decay=0.9)),
    )
  )
  config.evaluators = dict(
    generation=dict(
      type="vlx.evaluate.tasks.generation.Generation",
      splits=("combo",),
      prompts=2,
      samples=2,
      every=2,
      sampler=dict(truncation=0.8),
    )
  )
  return finalize(config)
