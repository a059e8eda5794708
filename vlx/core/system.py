"""What the training loop knows of a model: pure functions over plain dicts.

A system is one paper. It is a frozen dataclass whose fields are the config's `model` section; its
networks (Flax Linen) stay inside its own file.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax

# {"params": …, "state": …}; `state` holds what no gradient touches (batch statistics, codebooks).
Variables = dict[str, Any]
# The names of design: image [B,H,W,3], text [B,T], text_mask [B,T], label [B], example_mask [B], …
Batch = Mapping[str, jax.Array]


class Aux(NamedTuple):
  """What a loss returns beside its value."""

  metrics: Mapping[str, jax.Array]  # scalars to log
  state: Mapping[str, Any]  # the new `state`


@runtime_checkable
class System(Protocol):
  """The contract between a model file and everything else.

  A field of type `System` is a part that is not trained, which a config names by the folder of the run that
  trained it, or by a config ("configs/vqvae.py:smoke"), then untrained. Its variables stand in `state`, under
  the field's name.
  """

  def init(self, rng: jax.Array, batch: Batch) -> Variables:
    """Fresh variables; works under `jax.eval_shape`."""

  def loss(
      self, variables: Variables, batch: Batch, rng: jax.Array, *, step: jax.Array, train: bool
  ) -> tuple[jax.Array, Aux]:
    """Scalar loss of a (global) batch, a pure function of its arguments."""


@runtime_checkable
class ImageTokenizer(System, Protocol):
  """A system that makes a grid of codes of a picture, and a picture of codes."""

  num_codes: int
  image_size: int

  @property
  def grid(self) -> tuple[int, int]:
    """Rows and columns of the codes of a picture of `image_size`."""

  def encode_image(self, variables: Variables, image: jax.Array) -> jax.Array:
    """`[B, H, W, 3]` in [-1, 1] → `[B, rows, columns]`."""

  def decode_image(self, variables: Variables, ids: jax.Array) -> jax.Array:
    """`[B, rows, columns]` → `[B, H, W, 3]`."""
