"""Embeddings of whole splits, the same on any number of devices."""

import functools
import json
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import PartitionSpec as P

from vlx.data import batches
from vlx.train import partition
from vlx.train.run import Run


@functools.partial(jax.jit, static_argnames=("system", "method", "options"))
def apply(system, method: str, variables, *inputs, options: tuple[tuple[str, Any], ...] = ()):
  """`system.method(variables, *inputs, **options)`, compiled once; the result is on every device."""
  result = getattr(system, method)(variables, *inputs, **dict(options))
  return jax.lax.with_sharding_constraint(result, P())


def over_split(
    run: Run, variables, split: str, ops: str, method: str, inputs: tuple[str, ...],
    targets: tuple[str, ...], batch_size: int, **options,
) -> tuple[Any, dict[str, np.ndarray]]:
  """`method` applied to every example of a split.

  Args:
    run: whose system, data and mesh to use.
    variables: of the system.
    split: of the run's source.
    ops: preprocessing string.
    method: of the system, (variables, *inputs, **options) → `[B, …]`, or several of these.
    inputs: the fields of a batch it is given.
    targets: fields to return beside the outputs.
    batch_size: over all devices.
    **options: of the method, hashable.

  Returns:
    (outputs `[N, …]`, {target: values `[N, …]`}), in the source's order, padding removed.
  """
  sharding = partition.batch_sharding(run.mesh)
  rows = partition.own_rows(sharding, batch_size)
  examples = run.examples(split, ops)
  outputs, found = [], {t: [] for t in targets}
  for batch in batches.one_pass(examples, batch_size, rows):
    arrays = partition.to_devices({n: batch[n] for n in inputs}, sharding, batch_size)
    result = apply(run.system, method, variables, *arrays.values(), options=tuple(options.items()))
    outputs.append(jax.tree.map(np.asarray, result))
    for target in targets:
      found[target].append(_gather_rows(batch[target], rows, batch_size))
  # Copies that filled up the last batch stand at the end.
  join = lambda parts: np.concatenate(parts)[: len(examples)]
  return jax.tree.map(lambda *parts: join(parts), *outputs), {t: join(v) for t, v in found.items()}


def _gather_rows(own: np.ndarray, rows: np.ndarray, batch_size: int) -> np.ndarray:
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
    run: Run, variables, strings: list[str], text_length: int, batch_size: int,
    templates: tuple[str, ...] = ("{}",),
) -> np.ndarray:
  """Text embeddings `[N, D]`.

  With several templates, each prompt's embedding is normalised, and a text's is their mean, as in
  CLIP's zero-shot notebook.
  """
  sharding = partition.batch_sharding(run.mesh)
  rows = partition.own_rows(sharding, batch_size)
  means = []
  for first in range(0, len(strings), batch_size):
    part = strings[first : first + batch_size]
    filled = part + [part[-1]] * (batch_size - len(part))
    embeddings = []
    for template in templates:
      ids, mask = run.tokenizer.encode_batch([template.format(t) for t in filled], text_length)
      arrays = partition.to_devices(
          {"text": ids[rows], "text_mask": mask[rows]}, sharding, batch_size
      )
      out = np.asarray(apply(run.system, "encode_text", variables, *arrays.values()), np.float32)
      if len(templates) > 1:
        out = out / np.linalg.norm(out, axis=-1, keepdims=True)
      embeddings.append(out)
    means.append(np.mean(embeddings, axis=0)[: len(part)])
  return np.concatenate(means)
