"""Zero-shot and retrieval figures of a public CLIP on any data."""

from typing import Any

import jax

from vlx.data.transforms.preprocess import BadRecord
from vlx.core.errors import UserError
from vlx.evaluate.tasks.retrieval import Retrieval
from vlx.evaluate.subject import Loaded
from vlx.evaluate.tasks.templates import IMAGENET
from vlx.evaluate.tasks.zero_shot import ZeroShot
from vlx.models.contrastive.clip import CLIP
from vlx.core import partition

ROWS_PER_DEVICE = 32  # of a batch


def measure(model: Any, data: str, split: str, mesh: jax.sharding.Mesh) -> dict[str, float]:
  """`evaluator/split/measure` → percent.

  The classes of zero-shot classification are the distinct labels of the records, where these have a text for
  `label`, else their distinct captions; records of several captions and no label give retrieval alone.

  Args:
    model: what `vlx.pretrained.load` gives: system, variables, tokenizer, preprocess.
    data: of `vlx.data.sources`.
    split: of the data.
    mesh: of the devices to use.

  Raises:
    UserError: where the model is no CLIP, or has no tokenizer or another model's.
  """
  check_clip(model)
  system = model.system
  subject = Loaded(system, model.tokenizer, mesh, data)
  source = subject.source(split)
  try:
    record = source[0]
  except (BadRecord, OSError) as e:
    raise UserError(f"{source.name(0)}: {e}") from e
  classes = "label" if isinstance(record.get("label"), str) else "caption"
  common = dict(
      splits=(split,), preprocess=f'{model.preprocess}|keep("image", "caption", {classes!r})',
      text_length=system.text.context_length, batch_size=ROWS_PER_DEVICE * mesh.size,
  )
  evaluators = {"retrieval": Retrieval(gallery=(split,), **common)}
  if isinstance(record[classes], str):
    evaluators["zero_shot"] = ZeroShot(classes=(split,), field=classes, templates=IMAGENET, **common)
  with jax.set_mesh(mesh):
    variables = jax.device_put(model.variables, partition.replicated(mesh))
    return {
        f"{name}/{measure}": value for name, evaluator in evaluators.items()
        for measure, value in evaluator(subject, variables, draw=False).items()
    }


def check_clip(model: Any) -> None:
  """Raises `UserError` where the model is no CLIP, or has no tokenizer or another model's."""
  if not isinstance(model.system, CLIP):
    raise UserError(f"a CLIP is needed here, and this is a {type(model.system).__name__}")
  if model.tokenizer is None:
    raise UserError("the model comes without a tokenizer: vocab.json with merges.txt, or tokenizer.json")
  if model.tokenizer.vocab_size > model.system.text.vocab_size:
    raise UserError(
        f"the tokenizer is another model's: it has {model.tokenizer.vocab_size} tokens,"
        f" the model {model.system.text.vocab_size}"
    )
