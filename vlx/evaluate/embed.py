"""Embeddings of whole splits, the same on any number of devices."""

import functools

import jax
import numpy as np
from jax.sharding import PartitionSpec as P

from vlx.data import batches
from vlx.train import partition
from vlx.train.run import Run


@functools.partial(jax.jit, static_argnames=("system", "method"))
def apply(system, method: str, variables, *inputs):
  """`system.method(variables, *inputs)`, compiled once per system; the result is on every device."""
  result = getattr(system, method)(variables, *inputs)
  return jax.lax.with_sharding_constraint(result, P())


def over_split(
    run: Run, variables, split: str, ops: str, method: str, inputs: tuple[str, ...],
    targets: tuple[str, ...], batch_size: int,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
  """`method` applied to every example of a split.

  Args:
    run: whose system, data and mesh to use.
    variables: of the system.
    split: of the run's source.
    ops: preprocessing string.
    method: of the system, (variables, *inputs) → `[B, …]`.
    inputs: the fields of a batch it is given.
    targets: fields to return beside the outputs.
    batch_size: over all devices.

  Returns:
    (outputs `[N, …]`, {target: values `[N, …]`}), in the source's order, padding removed.
  """
  sharding = partition.batch_sharding(run.mesh)
  outputs, found = [], {t: [] for t in targets}
  for batch in batches.one_pass(run.examples(split, ops), batch_size):
    arrays = batches.to_devices({n: batch[n] for n in inputs}, sharding)
    real = batches.gather_rows(batch["example_mask"])
    outputs.append(np.asarray(apply(run.system, method, variables, *arrays.values()))[real])
    for target in targets:
      found[target].append(batches.gather_rows(batch[target])[real])
  return np.concatenate(outputs), {t: np.concatenate(v) for t, v in found.items()}


def texts(
    run: Run, variables, strings: list[str], text_length: int, batch_size: int,
    templates: tuple[str, ...] = ("{}",),
) -> np.ndarray:
  """Text embeddings `[N, D]`.

  With several templates, each prompt's embedding is normalised, and a text's is their mean, as in
  CLIP's zero-shot notebook.
  """
  sharding = partition.batch_sharding(run.mesh)
  means = []
  for first in range(0, len(strings), batch_size):
    part = strings[first : first + batch_size]
    filled = part + [part[-1]] * (batch_size - len(part))
    embeddings = []
    for template in templates:
      ids, mask = run.tokenizer.encode_batch([template.format(t) for t in filled], text_length)
      arrays = batches.to_devices(
          {k: batches.own_rows(v) for k, v in (("text", ids), ("text_mask", mask))}, sharding
      )
      out = np.asarray(apply(run.system, "encode_text", variables, *arrays.values()), np.float32)
      if len(templates) > 1:
        out = out / np.linalg.norm(out, axis=-1, keepdims=True)
      embeddings.append(out)
    means.append(np.mean(embeddings, axis=0)[: len(part)])
  return np.concatenate(means)
