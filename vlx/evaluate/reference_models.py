"""Other models that say something of images: a CLIP how well they fit their texts, classifiers what
they show.

An image is scored as a record of its data: the ops that make a record an example of the reference's
make its text or label too. What a system has sampled replaces the record's own image.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vlx.core import capabilities
from vlx.core import config as configs
from vlx.core.capabilities import Classifies, EmbedsImages, EmbedsText
from vlx.core.errors import UserError
from vlx.data.records import Record
from vlx.evaluate import predict
from vlx.evaluate.data import Data
from vlx.model import Model, load
from vlx.models.vision import classifier

ROWS = 64  # of a batch


@dataclasses.dataclass(frozen=True)
class ReferenceModel:
  """A model beside the one that is measured."""

  model: Model
  ops: str = ""  # behind its image transform, that make a label
  image_transform: str = ""  # instead of the model's own

  def over(
    self, records: Sequence[Record], method: str, *targets: str
  ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(the system's `method` of the records' images, {target: what the ops leave in that field})."""
    data = Data("", self.model.tokenizer, self.image_transform or self.model.image_transform)
    examples = data.of_records(records, self.ops, f"keep{('image', *targets)}")
    rows = min(ROWS, -(-len(records) // self.model.mesh.size) * self.model.mesh.size)
    return predict.predict_examples(
      self.model, examples, method, ("image",), targets, batch_size=rows
    )

  def features(self, records: Sequence[Record]) -> np.ndarray:
    """f64 `[N, D]`."""
    return self.over(records, "embed_image")[0].astype(np.float64)

  def cosines(self, records: Sequence[Record]) -> np.ndarray:
    """`[N]`, of each image and its `caption`."""
    image, targets = self.over(records, "embed_image", "caption")
    return (unit(image) * self.texts(targets["caption"])).sum(axis=-1)

  def texts(self, texts: Sequence[str]) -> np.ndarray:
    """Embeddings `[N, D]` of length 1; of equal texts once."""
    distinct, rows = np.unique(np.asarray(texts, str), return_inverse=True)
    text = predict.texts(self.model, distinct.tolist(), batch_size=min(ROWS, len(distinct)))
    return unit(np.asarray(text))[rows]


def unit(x: np.ndarray) -> np.ndarray:
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


@functools.lru_cache(maxsize=8)
def _load(source: str, mesh: Mesh, wanted: tuple[type, ...]) -> Model:
  model = load(source, mesh)
  capabilities.require(model.system, *wanted, what=source)
  if not model.image_transform:
    raise UserError(
      f"{source}: cannot infer image preprocessing: its config has no data.image_transform"
    )
  return model


def open_features(source: str, mesh: Mesh) -> ReferenceModel:
  """A run, or a public checkpoint (`vlx.load`), that embeds images.

  Raises:
    UserError: where there is none, or it does not.
  """
  return ReferenceModel(_load(source, mesh, (EmbedsImages,)))


def open_clip(source: str, mesh: Mesh) -> ReferenceModel:
  """A model of images and texts, a run or a public one.

  Raises:
    UserError: where there is none.
  """
  model = _load(source, mesh, (EmbedsImages, EmbedsText))
  try:
    model.encode_texts(["a"], 8)
  except UserError as e:
    raise UserError(f"{source}: {e}") from e
  return ReferenceModel(model)


def open_classifier(workdir: str, mesh: Mesh) -> ReferenceModel:
  """The classifier of a run; records become examples, labels among them, as in its classification
  evaluator.

  Raises:
    UserError: where the folder holds no such run.
  """
  model = _load(workdir, mesh, (Classifies,))
  sections = configs.read(pathlib.Path(workdir)).resolved.evaluators.to_dict().values()
  found = [s for s in sections if s["type"].endswith("Classification")]
  if not found:
    raise UserError(
      f"{workdir} holds a classifier, but its config has no Classification evaluator that tells its label"
    )
  return ReferenceModel(model, found[0].get("ops", ""), found[0].get("image_transform", ""))


@dataclasses.dataclass(frozen=True)
class Scorers:
  """A CLIP, or none, and classifiers by their names."""

  clip: ReferenceModel | None
  classifiers: Mapping[str, ReferenceModel]

  def measure(self, records: Sequence[Record]) -> dict[str, np.ndarray]:
    """`[N]` each: `clip_cosine`; `NAME_accuracy`, 100 where a classifier sees what the record is,
    else 0.
    """
    found = {}
    if self.clip:
      found["clip_cosine"] = self.clip.cosines(records)
    for name, reference in self.classifiers.items():
      logits, targets = reference.over(records, "class_logits", "label")
      right = classifier.is_correct(jnp.asarray(logits), jnp.asarray(targets["label"]))
      found[f"{name}_accuracy"] = 100.0 * np.asarray(right)
    return found


def open_scorers(clip: str, classifiers: Sequence[str], mesh: Mesh) -> Scorers:
  """Opens a CLIP as `open_clip` does ("": none) and classifiers as `open_classifier` does; a classifier is called as its
  folder.
  """
  named = {pathlib.Path(workdir).name: open_classifier(workdir, mesh) for workdir in classifiers}
  return Scorers(open_clip(clip, mesh) if clip else None, named)
