"""A system's loss on examples that it was not trained with."""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from vlx.core import partition
from vlx.core.errors import UserError
from vlx.core.system import Term, Trains
from vlx.data import batches
from vlx.evaluate.data import Data
from vlx.evaluate.results import Results
from vlx.model import Model


@dataclasses.dataclass(frozen=True)
class HeldOutLoss:
  """Measures `SPLIT/TERM`, the mean of each term of the loss over the split, exactly: sums and
  counts of all examples; and `SPLIT/loss`, their weighted sum, where weights are constants.

  What is random in a loss (a diffusion's noise) is a function of the example's index, the
  same each time.
  """

  splits: tuple[str, ...]
  ops: str = ""  # behind the image transform, that make what the system takes
  task: int | None = None  # of a system whose streams take turns: which one's loss
  every: int = 0
  image_transform: str = ""
  batch_size: int = 64

  requires = (Trains,)
  better = {"*": "lower"}

  def __call__(self, model: Model, data: Data) -> Results:
    if why := model.system.accumulates():
      raise UserError(f"the loss of a split is not the mean over its examples: {why}")
    if any(isinstance(field, Mapping) for field in model.system.inputs().values()):
      raise UserError(
        'a system that takes several streams at once (data.mixture "all") has no loss on one split'
      )
    names = tuple(name for name in model.system.inputs() if self.task is None or name != "task")
    measures = {}
    for split in self.splits:
      keep = f"keep({', '.join(map(repr, names))})"
      examples = data.examples(split, self.ops, keep, image_transform=self.image_transform)
      sums, counts, weights = self._totals(model, examples, names)
      means = {term: float(sums[term] / max(counts[term], 1e-12)) for term in sums}
      measures |= {f"{split}/{term}": mean for term, mean in means.items()}
      measures[f"{split}/loss"] = sum(weights[term] * mean for term, mean in means.items())
    return Results(measures)

  def _totals(self, model, examples, names):
    """(sum, count, weight) of each term over all examples, f64; a weight is the first example's."""
    sharding = partition.batch_sharding(model.mesh)
    size = -(-self.batch_size // model.mesh.size) * model.mesh.size
    rows = partition.local_rows(sharding, size)
    sums, counts, weights, first = {}, {}, {}, 0
    for batch in batches.one_pass(examples, size, rows):
      inputs = {n: batch[n] for n in (*names, "example_mask")} | {
        "index": (first + rows).astype(np.int32)
      }
      if self.task is not None:
        inputs["task"] = np.full(len(rows), self.task, np.int32)
      arrays = {n: partition.make_global_array(x, sharding, size) for n, x in inputs.items()}
      mask, index = arrays.pop("example_mask"), arrays.pop("index")
      for term, (total, count, weight) in jax.device_get(
        _terms(model.system, model.variables, arrays, mask, index)
      ).items():
        sums[term] = sums.get(term, 0.0) + np.float64(total)
        counts[term] = counts.get(term, 0.0) + np.float64(count)
        weights.setdefault(term, float(weight))
      first += size
    return sums, counts, weights


@functools.partial(jax.jit, static_argnums=0)
def _terms(system, variables, batch, mask, index):
  """The sum and the count of each term over a batch, of those examples that the mask keeps, and its
  weight.
  """

  def of_one(example, index):
    one = jax.tree.map(lambda x: x[None], example)
    rng = jax.random.fold_in(jax.random.key(0), index)
    terms, _ = system.loss(variables, one, rng, step=jnp.int32(0), train=False, frozen=frozenset())
    return {
      name: Term(*(jnp.asarray(x, jnp.float32) for x in term)) for name, term in terms.items()
    }

  total = lambda x: jnp.sum(x, where=mask)
  found = jax.vmap(of_one)(batch, index)
  return {n: (total(x.sum), total(x.count), x.weight[0]) for n, x in found.items()}
