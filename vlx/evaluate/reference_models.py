"""What other models say of pictures: a CLIP how well they fit their texts, classifiers what they show.

A picture is judged as a record of its data: the ops that make a record an example of the judge's make its text
or label too. What a system has drawn takes the place of the record's own picture.
"""

import dataclasses
import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from PIL import Image

from vlx import pretrained
from vlx.data import batches
from vlx.data.transforms import preprocess
from vlx.data.sources import Record
from vlx.core.errors import UserError
from vlx.evaluate import public
from vlx.evaluate import predict as embed
from vlx.evaluate.metrics import images as image_metrics
from vlx.core.system import System, Variables
from vlx.models.vision import classifier
from vlx.core import checkpoint
from vlx.core import partition
from vlx.train.run import open_run

ROWS_PER_DEVICE = 64  # of a batch


@dataclasses.dataclass(frozen=True)
class Judge:
  """A model beside the one that is measured."""

  system: System
  variables: Variables
  tokenizer: Any
  mesh: Mesh
  preprocess: str  # of records, up to what the system takes

  def over(
      self, records: Sequence[Record], method: str, *targets: str
  ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(the system's `method` of the records' pictures, {target: what its ops leave in that field})."""
    ops = "|".join([self.preprocess, f"keep{('image', *targets)}"])
    examples = batches.Examples(records, preprocess.parse(ops, self.tokenizer))
    return embed.over_examples(
        self.system, self.mesh, self.variables, examples, method, ("image",), targets, self._rows(len(records))
    )

  def features(self, records: Sequence[Record]) -> np.ndarray:
    """f64 `[N, D]`."""
    return self.over(records, "encode_image")[0].astype(np.float64)

  def cosines(self, records: Sequence[Record]) -> np.ndarray:
    """`[N]`, of each picture and its `caption`, by a CLIP."""
    image, targets = self.over(records, "encode_image", "caption")
    texts, rows = np.unique(targets["caption"].astype(str), return_inverse=True)
    text = embed.texts(
        self, self.variables, texts.tolist(), self.system.text.context_length, self._rows(len(texts))
    )
    return (unit(image) * unit(text)[rows]).sum(axis=-1)

  def _rows(self, count: int) -> int:
    """Of a batch over all devices; no more than there are pictures."""
    return self.mesh.size * min(ROWS_PER_DEVICE, -(-count // self.mesh.size))


def unit(x: np.ndarray) -> np.ndarray:
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def open_features(place: str, mesh: Mesh) -> Judge:
  """A run, or a public checkpoint (`vlx.pretrained.load`), that embeds pictures.

  Raises:
    UserError: where there is none, or it does not.
  """
  model = _load(place, mesh)
  if not hasattr(model.system, "encode_image") or hasattr(model.system, "decode_image"):
    raise UserError(f"{place} holds a {type(model.system).__name__}, which gives no features of pictures")
  return Judge(model.system, model.variables, model.tokenizer, mesh, model.preprocess)


def open_clip(place: str, mesh: Mesh) -> Judge:
  """A CLIP run, or a public one (`vlx.pretrained.load`).

  Raises:
    UserError: where there is none.
  """
  model = _load(place, mesh)
  try:
    public.check_clip(model)
  except UserError as e:
    raise UserError(f"{place}: {e}") from e
  return Judge(model.system, model.variables, model.tokenizer, mesh, model.preprocess)


def _load(place: str, mesh: Mesh) -> pretrained.Pretrained:
  model = pretrained.load(place, mesh=mesh)
  if not model.preprocess:
    raise UserError(f"{place} does not say how pictures are to be prepared: it has no evaluator that reads any")
  return model


def open_classifier(workdir: str, mesh: Mesh) -> Judge:
  """The classifier of a run; records become examples, labels among them, as in its classification evaluator.

  Raises:
    UserError: where the folder holds no such run.
  """
  run = open_run(workdir)
  if not isinstance(run.system, classifier.Classifier) or "classification" not in run.config.evaluators:
    raise UserError(f"{workdir} holds no classifier that was evaluated by evaluators.classification")
  ops = run.config.evaluators.classification.preprocess
  variables = checkpoint.restore_variables(run.workdir, partition.replicated(mesh))
  return Judge(run.system, variables, run.tokenizer, mesh, ops)


@dataclasses.dataclass(frozen=True)
class Panel:
  """A CLIP, or none, and classifiers by their names."""

  clip: Judge | None
  classifiers: Mapping[str, Judge]

  def measure(self, records: Sequence[Record]) -> dict[str, np.ndarray]:
    """`[N]` each: `clip_score`; `NAME_accuracy`, 100 where a classifier sees what the record is, else 0."""
    found = {}
    if self.clip:
      found["clip_score"] = image_metrics.clip_score(self.clip.cosines(records))
    for name, judge in self.classifiers.items():
      logits, targets = judge.over(records, "logits", "label")
      right = classifier.right(jnp.asarray(logits), jnp.asarray(targets["label"]))
      found[f"{name}_accuracy"] = 100.0 * np.asarray(right)
    return found


def open_panel(clip: str, classifiers: Sequence[str], mesh: Mesh) -> Panel:
  """Of what `open_clip` ("": none) and `open_classifier` take; a classifier is called as its folder."""
  named = {pathlib.Path(workdir).name: open_classifier(workdir, mesh) for workdir in classifiers}
  return Panel(open_clip(clip, mesh) if clip else None, named)


def with_picture(record: Record, image: np.ndarray) -> Record:
  """The record with another picture, `[H, W, 3]` in [-1, 1]."""
  out = io.BytesIO()
  pixels = np.round(np.clip((image + 1) / 2, 0, 1) * 255).astype(np.uint8)
  Image.fromarray(pixels).save(out, "png")
  return {**record, "image": out.getvalue()}
