"""Gated layers above a public CLIP's tower, between those of a public LLaMA; both frozen."""

from vlx.core.config import finalize
from vlx.data.transforms.ops import is_random
from vlx.train import defaults

IMAGE_ID = 3
TEXT = f"tests.new_systems.flamingo.config.told|conversation(32, image_id={IMAGE_ID})"


def told():
  """An op: an image, then what a caption tells of it."""

  def apply(example, rng):
    captions = example["caption"]
    caption = captions[rng.integers(len(captions)) if is_random(rng) else 0]
    said = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": caption}]
    return {**example, "conversations": said}

  return apply


def get_config(clip: str, llama: str):
  config = defaults.get_config()
  config.system = "tests.new_systems.flamingo.model.Flamingo"
  config.model = dict(
    tower=dict(source=clip),
    language_model=dict(source=llama),
    image_size=16,
    tower_width=24,
    image_keys=5,
    image_id=IMAGE_ID,
  )
  config.data.update(
    dict(
      source="scenes:64?size=16&held_out=16",
      batch_size=16,
      image_transform="decode|resize(16)|normalize",
      preprocess=f'decode|resize(16)|normalize|{TEXT}|keep("image", "text", "text_mask", "target_mask")',
    )
  )
  config.tokenizer = dict(kind="public", path=llama, vocab_size=200, fields=("caption",))
  frozen = (r"(tower|language_model)/.*", dict(frozen=True, dtype="bfloat16"))
  config.optim.update(dict(lr=1e-2, schedule="constant", rules=(frozen,)))
  config.evaluators = dict(
    loss=dict(type="vlx.evaluate.tasks.loss.HeldOutLoss", splits=("val",), ops=TEXT)
  )
  return finalize(config)
