"""A method of a system over whole splits, the same on any number of devices and processes."""

import json
from typing import Any

import jax
import numpy as np
from einops import reduce
from jax.experimental import multihost_utils

from vlx.core import partition
from vlx.data import batches
from vlx.model import Model, call


def predict_examples(
  model: Model,
  examples: batches.Examples,
  method: str,
  names: tuple[str, ...],
  targets: tuple[str, ...] = (),
  *,
  batch_size: int,
  as_inputs: bool = False,
  **options: Any,
) -> tuple[Any, dict[str, np.ndarray]]:
  """`method` of the model's system applied to every example.

  Args:
    model: see there.
    examples: that hold what is asked for.
    method: of the system, `(variables, *inputs, **options) → [B, …]`, or several of these.
    names: of the fields that it is given.
    targets: fields to return beside the outputs.
    batch_size: over all devices; rounded up to a multiple of their number.
    as_inputs: whether the method takes one dict of its inputs.
    **options: of the method, hashable.

  Returns:
    (outputs `[N, …]`, {target: values `[N, …]`}), in the source's order, padding removed.
  """
  sharding = partition.batch_sharding(model.mesh)
  batch_size = -(-batch_size // model.mesh.size) * model.mesh.size
  rows = partition.local_rows(sharding, batch_size)
  outputs, found = [], {t: [] for t in targets}
  for batch in batches.one_pass(examples, batch_size, rows):
    arrays = {n: partition.make_global_array(batch[n], sharding, batch_size) for n in names}
    inputs = (arrays,) if as_inputs else tuple(arrays.values())
    result = call(
      model.system, method, model.variables, *inputs, options=tuple(sorted(options.items()))
    )
    outputs.append(jax.tree.map(np.asarray, result))
    for target in targets:
      found[target].append(gather_rows(batch[target], rows, batch_size))
  # Copies that filled up the last batch stand at the end.
  join = lambda parts: np.concatenate(parts)[: len(examples)]
  return jax.tree.map(lambda *parts: join(parts), *outputs), {t: join(v) for t, v in found.items()}


def gather_rows(own: np.ndarray, rows: np.ndarray, batch_size: int) -> np.ndarray:
  """Numbers, strings or tuples of all rows, from every process's own."""
  if jax.process_count() == 1:
    return own
  encoded = np.frombuffer(json.dumps([rows.tolist(), own.tolist()]).encode(), np.uint8)
  lengths = multihost_utils.process_allgather(np.array(len(encoded)))
  parts = multihost_utils.process_allgather(np.pad(encoded, (0, lengths.max() - len(encoded))))
  values = {}
  for part, length in zip(parts, lengths):
    values.update(zip(*json.loads(part[:length].tobytes())))
  ordered = [values[row] for row in range(batch_size)]
  if own.dtype != object:
    return np.array(ordered, own.dtype)
  return batches.objects([tuple(v) if isinstance(v, list) else v for v in ordered])


def texts(
  model: Model, strings: list[str], *, batch_size: int, templates: tuple[str, ...] = ("{}",)
) -> np.ndarray:
  """Text embeddings `[N, D]`.

  With several templates, each prompt's embedding is normalised, and a text's is their mean, as in
  CLIP's zero-shot notebook.
  """
  sharding = partition.batch_sharding(model.mesh)
  batch_size = -(-batch_size // model.mesh.size) * model.mesh.size
  rows = partition.local_rows(sharding, batch_size)
  # Not `format`, which a brace in a text would take for its own.
  prompts = [template.replace("{}", string) for string in strings for template in templates]
  ids, mask = model.encode_texts(prompts, model.system.text_length)
  embeddings = []
  for first in range(0, len(prompts), batch_size):
    part = np.minimum(first + rows, len(prompts) - 1)
    arrays = [partition.make_global_array(x[part], sharding, batch_size) for x in (ids, mask)]
    found = call(model.system, "embed_text", model.variables, *arrays)
    embeddings.append(np.asarray(found, np.float32))
  embeddings = np.concatenate(embeddings)[: len(prompts)]
  if len(templates) > 1:
    embeddings /= np.linalg.norm(embeddings, axis=-1, keepdims=True)
  return reduce(embeddings, "(s t) d -> s d", "mean", t=len(templates))
