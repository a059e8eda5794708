"""The contract between a model file and everything else: pure functions over plain dicts.

A system is one paper. It is a frozen dataclass whose fields are the config's `model` section; its networks
(Flax Linen) stay inside its own file. A field that is itself a system is a *part*: a tokenizer below DALL-E, a
tower below LLaVA. Its variables stand under the field's name, in `params` and in `state`.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp

# {"params": …, "state": …}; `state` holds what no gradient touches (batch statistics, codebooks).
Variables = dict[str, Any]
# The names of design: image [B,H,W,3], text [B,T], text_mask [B,T], label [B], example_mask [B], …
Batch = Mapping[str, jax.Array]
# Paths of subtrees of `params` that are wholly frozen, joined by "/": {"encoder",
# "encoder/backbone", …}.
Frozen = frozenset[str]


class Term(NamedTuple):
  """One summand of a loss, weight · sum / count.

  Sum and count are over the batch at hand, so those of the parts of a batch add up to the batch's.
  """

  sum: jax.Array
  count: jax.Array | float
  weight: jax.Array | float = 1.0

  @property
  def mean(self) -> jax.Array:
    """sum / count; 0 where nothing was counted."""
    return self.sum / jnp.where(self.count == 0, 1, self.count)


Terms = Mapping[str, Term]


class Aux(NamedTuple):
  """Beside the terms of a loss."""

  metrics: Mapping[str, jax.Array]  # scalars to log
  state: Mapping[str, Any]  # the new `state`


@runtime_checkable
class System(Protocol):
  """All that a model needs to be loaded; what else it can do, its capabilities say."""

  def init(self, rng: jax.Array) -> Variables:
    """Fresh variables of its own, without those of its parts; works under `jax.eval_shape`."""
    ...


@runtime_checkable
class Trains(System, Protocol):
  """A system with a loss.

  `frozen` are paths of parameters that do not learn: the loss applies what stands there with
  `train=False`. With the attribute `players`, name → path pattern of the parameters that are its
  own, the loss takes `player=NAME` too, and each player has a turn at each batch, in this order.
  """

  def inputs(self) -> dict[str, jax.ShapeDtypeStruct]:
    """One training example, without a batch axis."""
    ...

  def loss(
    self,
    variables: Variables,
    batch: Batch,
    rng: jax.Array,
    *,
    step: jax.Array,
    train: bool,
    frozen: Frozen,
  ) -> tuple[Terms, Aux]:
    """The terms of a (global) batch's loss, a pure function of its arguments."""
    ...

  def accumulates(self) -> str:
    """Why the terms of a batch's parts do not add up to the batch's; "" where they do."""
    ...


@runtime_checkable
class HasPlayers(Trains, Protocol):
  """A system whose parameters belong to several players (a GAN's)."""

  players: Mapping[str, str]


@runtime_checkable
class Prepares(Trains, Protocol):
  """A system that looks at data once before step 0: PCA, k-means, a latent's scale."""

  def prepare(self, variables: Variables, batches: Any, rng: jax.Array) -> Variables:
    """New variables; `batches[i]` is batch i of training, on the devices."""
    ...


def image_input(height: int, width: int | None = None) -> jax.ShapeDtypeStruct:
  """f32 `[H, W, 3]`, square without a width."""
  return jax.ShapeDtypeStruct((height, width or height, 3), jnp.float32)


def text_inputs(length: int) -> dict[str, jax.ShapeDtypeStruct]:
  """`text` i32 `[T]` and `text_mask` bool `[T]`."""
  shape = jax.ShapeDtypeStruct
  return {"text": shape((length,), jnp.int32), "text_mask": shape((length,), jnp.bool_)}


def batch_shapes(
  inputs: Mapping[str, jax.ShapeDtypeStruct], size: int
) -> dict[str, jax.ShapeDtypeStruct]:
  """The inputs with a batch axis."""
  return {k: jax.ShapeDtypeStruct((size, *s.shape), s.dtype) for k, s in inputs.items()}


def total(terms: Terms) -> jax.Array:
  """Σ weight · sum / count."""
  return sum((term.weight * term.mean for term in terms.values()), start=jnp.zeros(()))


def parts(system: Any) -> dict[str, System]:
  """Field → the system in it."""
  values = {f.name: getattr(system, f.name) for f in dataclasses.fields(system)}
  # A Linen module has an `init` too, of another kind.
  return {k: v for k, v in values.items() if isinstance(v, System) and not isinstance(v, nn.Module)}


def init(system: System, rng: jax.Array) -> Variables:
  """Fresh variables of a system and of its parts."""
  variables = system.init(rng)
  below = {name: init(inner, rng) for name, inner in parts(system).items()}
  return {
    kind: {**variables[kind], **{n: v[kind] for n, v in below.items()}}
    for kind in ("params", "state")
  }


def variable_shapes(system: System) -> Variables:
  """The shapes of a system's variables, those of its parts too; no array is made."""
  return jax.tree.map(lambda s: s, _shapes(system))  # dicts of the caller's own


@functools.lru_cache(maxsize=64)
def _shapes(system: System) -> Variables:
  return jax.eval_shape(functools.partial(init, system), jax.random.key(0))


def part(variables: Variables, name: str) -> Variables:
  """The variables of the part in field `name`."""
  return {kind: variables[kind][name] for kind in ("params", "state")}


def own(variables: Variables, *names: str) -> Variables:
  """The variables without those of the parts in these fields."""
  return {
    kind: {k: v for k, v in variables[kind].items() if k not in names}
    for kind in ("params", "state")
  }


def names(tree: Any) -> Any:
  """The tree with each leaf replaced by its name, keys joined by "/"."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: jax.tree_util.keystr(path, simple=True, separator="/"), tree
  )


def flatten(tree: Any) -> dict[str, Any]:
  """Name → leaf."""
  return dict(zip(jax.tree.leaves(names(tree)), jax.tree.leaves(tree)))


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
  """Name → leaf as nested dicts; the inverse of `flatten` on them."""
  tree: dict[str, Any] = {}
  for name, leaf in flat.items():
    *folders, last = name.split("/")
    node = tree
    for folder in folders:
      node = node.setdefault(folder, {})
    node[last] = leaf
  return tree


def split_state(name: str, system: System) -> tuple[str, str]:
  """(Flax's collection, path of the network in `params`) of a leaf of `state`.

  "batch_stats/encoder/norm/mean" → ("batch_stats", "encoder/norm/mean"). A part's leaf begins with
  the part's name: "tokenizer/batch_stats/norm/mean" → ("batch_stats", "tokenizer/norm/mean").
  """
  steps, prefix = name.split("/"), []
  while steps and steps[0] in (below := parts(system)):
    system = below[steps[0]]
    prefix.append(steps.pop(0))
  return steps[0], "/".join([*prefix, *steps[1:]])


def is_below(path: str, roots: Frozen) -> bool:
  """Whether a path is one of the roots or stands below one."""
  steps = path.split("/")
  return any("/".join(steps[:n]) in roots for n in range(1, len(steps) + 1))
