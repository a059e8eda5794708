"""Two stages: the projector alone above a public CLIP and a public LLaMA, then all but the
tower.
"""

from vlx.core.config import finalize
from vlx.data.transforms.ops import is_random
from vlx.train import defaults

IMAGE_ID, TOKENS = 3, 4
TEXT = f"tests.new_systems.llava.config.asked|conversation(32, image_id={IMAGE_ID}, image_tokens={TOKENS})"


def asked():
  """An op: one of a scene's questions and its answer as a conversation."""

  def apply(example, rng):
    questions = example["questions"]
    question, answer = questions[rng.integers(len(questions)) if is_random(rng) else 0]
    said = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
    return {**example, "conversations": said}

  return apply


def get_config(clip: str, llama: str, first: str = ""):
  """`first` is a run of the first stage; without one it is that stage."""
  config = defaults.get_config()
  config.system = "tests.new_systems.llava.model.LLaVA"
  config.model = dict(
    tower=dict(source=clip),
    language_model=dict(source=llama),
    image_size=16,
    image_tokens=TOKENS,
    tower_width=24,
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
  half = (r"(tower|language_model)/.*", dict(frozen=True, dtype="bfloat16"))
  config.optim.update(dict(lr=2e-3, schedule="constant", rules=(half,)))
  if first:
    config.init = (dict(source=first),)
    config.optim.update(dict(lr=1e-3, rules=((r"language_model/.*", {}),)))
  config.evaluators = dict(
    loss=dict(type="vlx.evaluate.tasks.loss.HeldOutLoss", splits=("val",), ops=TEXT)
  )
  return finalize(config)
