"""Measures any model on any data, by its capabilities."""

from vlx.core import capabilities
from vlx.core.capabilities import CaptionsImages, Classifies, EmbedsImages, EmbedsText, Reconstructs
from vlx.core.errors import UserError
from vlx.data.records import BadRecord
from vlx.evaluate import runner
from vlx.evaluate.data import Data
from vlx.evaluate.metrics.captions import has_java_parts
from vlx.evaluate.tasks.captions import Captions
from vlx.evaluate.tasks.classification import Classification
from vlx.evaluate.tasks.reconstruction import Reconstruction
from vlx.evaluate.tasks.retrieval import Retrieval
from vlx.evaluate.tasks.templates import IMAGENET
from vlx.evaluate.tasks.zero_shot import ZeroShot
from vlx.model import Model


def measure_on(model: Model, spec: str, split: str, say=lambda text: None) -> dict[str, float]:
  """`evaluator/split/measure` → number, of all that a model's capabilities and the data allow.

  The classes of zero-shot classification are the distinct labels of the records, where these have a
  text for `label`, else their distinct captions; records of several captions and no label give
  retrieval alone.

  Args:
    model: to measure.
    spec: of `vlx.data.sources`.
    split: of the data.
    say: is told what is being done.

  Raises:
    UserError: where nothing can be measured, the first record cannot be read, or the model lacks
      what it needs.
  """
  data = Data(spec, model.tokenizer, model.image_transform)
  source = data.source(split)
  try:
    record = source[0]
  except (BadRecord, OSError) as e:
    raise UserError(f"{source.name(0)}: {e}") from e
  found, can = {}, lambda *wanted: all(capabilities.has(model.system, one) for one in wanted)
  if can(EmbedsImages, EmbedsText):
    model.encode_texts(["a"], 8)  # says what is wrong with the tokenizer
    found["retrieval"] = Retrieval(splits=(split,), gallery=(split,))
    classes = "label" if isinstance(record.get("label"), str) else "caption"
    if isinstance(record.get(classes), str):
      found["zero_shot"] = ZeroShot(
        splits=(split,), classes=(split,), field=classes, templates=IMAGENET
      )
  if can(CaptionsImages) and "caption" in record:
    words = "ptb" if has_java_parts() else "words"
    found["captions"] = Captions(splits=(split,), tokenizer=words, beam_size=20, max_length=31)
  if can(Reconstructs):
    found["reconstruction"] = Reconstruction(splits=(split,))
  if can(Classifies) and "label" in record:
    named = isinstance(record["label"], str)
    found["classification"] = Classification(splits=(split,), ops="label_id" if named else "")
  if not found:
    raise UserError(
      f"vlx has no evaluator for a {type(model.system).__name__} on such records; its capabilities are"
      f" {capabilities.listed(model.system)}; name evaluators of your own by --workdir and --config"
    )
  return runner.evaluate(found, model, data, say)[0]
