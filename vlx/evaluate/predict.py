"""Embeddings of whole splits, the same on any number of devices."""

import functools
import json
from typing import Any

import jax
import numpy as np
from einops import reduce
from jax.experimental import multihost_utils
from jax.sharding import Mesh, PartitionSpec as P

from vlx.data import batches
from vlx.evaluate.subject import Subject
from vlx.core.system import System
from vlx.core import partition


@functools.partial(jax.jit, static_argnames=("system", "method", "options"))
def apply(system, method: str, variables, *inputs, options: tuple[tuple[str, Any], ...] = ()):
  """`system.method(variables, *inputs, **options)`, compiled once; the result is on every device."""
  result = getattr(system, method)(variables, *inputs, **dict(options))
  return jax.lax.with_sharding_constraint(result, P())


def over_split(
    run: Subject, variables, split: str, ops: str, method: str, inputs: tuple[str, ...],
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
  return over_examples(
      run.system, run.mesh, variables, run.examples(split, ops), method, inputs, targets, batch_size, **options
  )


def over_examples(
    system: System, mesh: Mesh, variables, examples: batches.Examples, method: str, inputs: tuple[str, ...],
    targets: tuple[str, ...], batch_size: int, **options,
) -> tuple[Any, dict[str, np.ndarray]]:
  """`over_split` of examples that need not be a split's."""
  sharding = partition.batch_sharding(mesh)
  rows = partition.own_rows(sharding, batch_size)
  outputs, found = [], {t: [] for t in targets}
  for batch in batches.one_pass(examples, batch_size, rows):
    arrays = partition.to_devices({n: batch[n] for n in inputs}, sharding, batch_size)
    result = apply(system, method, variables, *arrays.values(), options=tuple(options.items()))
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
    run: Subject, variables, strings: list[str], text_length: int, batch_size: int,
    templates: tuple[str, ...] = ("{}",),
) -> np.ndarray:
  """Text embeddings `[N, D]`.

  With several templates, each prompt's embedding is normalised, and a text's is their mean, as in
  CLIP's zero-shot notebook.
  """
  sharding = partition.batch_sharding(run.mesh)
  rows = partition.own_rows(sharding, batch_size)
  prompts = [template.format(string) for string in strings for template in templates]
  ids, mask = run.tokenizer.encode_batch(prompts, text_length)
  longest = mask.sum(axis=1).max()  # nobody needs the padding behind it
  embeddings = []
  for first in range(0, len(prompts), batch_size):
    part = np.minimum(first + rows, len(prompts) - 1)
    arrays = partition.to_devices(
        {"text": ids[part, :longest], "text_mask": mask[part, :longest]}, sharding, batch_size
    )
    embeddings.append(np.asarray(apply(run.system, "encode_text", variables, *arrays.values()), np.float32))
  embeddings = np.concatenate(embeddings)[: len(prompts)]
  if len(templates) > 1:
    embeddings /= np.linalg.norm(embeddings, axis=-1, keepdims=True)
  return reduce(embeddings, "(s t) d -> s d", "mean", t=len(templates))
