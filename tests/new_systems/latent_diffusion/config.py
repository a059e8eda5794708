"""The autoencoder, then the diffusion above a run of it and a public BERT, whose tokenizer reads
the captions.
"""

from vlx.core.config import finalize
from vlx.train import defaults

TOKENIZE = 'tokenize("caption", 12)'


def _emoji(system: str, keep: str):
  config = defaults.get_config()
  config.system = f"tests.new_systems.latent_diffusion.model.{system}"
  config.data.update(
    dict(
      source="tfds:emoji",
      batch_size=32,
      image_transform="decode|resize(16)|normalize",
      preprocess=f"decode|resize(16)|cache|normalize|{keep}",
    )
  )
  config.optim.update(dict(lr=2e-3, schedule="constant"))
  return config


def autoencoder():
  config = _emoji("Autoencoder", 'keep("image")')
  config.steps = 3
  return finalize(config)


def get_config(autoencoder: str, text_encoder: str):
  config = _emoji("LatentDiffusion", f'{TOKENIZE}|keep("image", "text", "text_mask")')
  config.model = dict(
    autoencoder=dict(source=autoencoder), text_encoder=dict(source=text_encoder), text_dim=16
  )
  config.tokenizer = dict(kind="public", path=text_encoder, vocab_size=40, fields=("caption",))
  config.optim.update(
    dict(ema_decay=0.9, rules=((r"text_encoder/.*", dict(frozen=True, dtype="bfloat16")),))
  )
  config.evaluators = dict(
    generation=dict(
      type="vlx.evaluate.tasks.generation.Generation",
      splits=("combo",),
      prompts=2,
      samples=2,
      sampler=dict(num_steps=2, guidance_scale=2.0),
    ),
    loss=dict(type="vlx.evaluate.tasks.loss.HeldOutLoss", splits=("combo",), ops=TOKENIZE),
  )
  return finalize(config)
