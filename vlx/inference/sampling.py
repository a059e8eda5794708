"""From logits to the next token: what changes logits, as pure functions, and how one is sampled.

The functions, and the order in which `Sampling` applies them, are those of Hugging Face's
`generate`: repetition penalty, temperature, top-k, top-p. A token that is ruled out has the logit
−∞.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vlx.core.errors import UserError

Logits = Float[Array, "batch vocab"]


def penalize_repetition(logits: Logits, seen: Bool[Array, "batch vocab"], penalty: float) -> Logits:
  """Makes the tokens that a text already has less likely (CTRL, Keskar et al., 2019, §4.1).

  The paper divides their logits; where one is below zero, that would make it likelier, and it is
  multiplied.
  """
  return jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)


def keep_top_k(logits: Logits, k: int) -> Logits:
  """The k likeliest tokens (Fan et al., 2018), and what is as likely as the last of them."""
  least = jax.lax.top_k(logits, min(k, logits.shape[-1]))[0][:, -1:]
  return jnp.where(logits < least, -jnp.inf, logits)


def keep_top_p(logits: Logits, p: float) -> Logits:
  """The fewest tokens that hold a probability of p (Holtzman et al., 2020), and ties of the
  last.
  """
  ordered = -jnp.sort(-logits, axis=-1)
  probabilities = jax.nn.softmax(ordered, axis=-1)
  before = jnp.cumsum(probabilities, axis=-1) - probabilities
  least = jnp.min(ordered, axis=-1, keepdims=True, initial=jnp.inf, where=before < p)
  return jnp.where(logits < least, -jnp.inf, logits)


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How tokens are sampled; as it stands, greedily.

  `temperature` 0 takes the likeliest token. `top_k` 0, `top_p` 1 and `repetition_penalty` 1 change
  nothing.
  """

  temperature: float = 0.0
  top_k: int = 0
  top_p: float = 1.0
  repetition_penalty: float = 1.0

  def __post_init__(self):
    for name, fits, wanted in (
      ("temperature", self.temperature >= 0, "not below 0"),
      ("top_k", self.top_k >= 0, "not below 0"),
      ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
      ("repetition_penalty", self.repetition_penalty > 0, "above 0"),
    ):
      if not fits:
        raise UserError(f"{name} is {wanted}, not {getattr(self, name)}")

  def adjusted(self, logits: Logits, seen: Bool[Array, "batch vocab"]) -> Logits:
    """The logits of the distribution that is sampled from, where the temperature is not 0."""
    if self.repetition_penalty != 1:
      logits = penalize_repetition(logits, seen, self.repetition_penalty)
    if self.temperature == 0:
      return logits
    logits = logits / self.temperature
    if self.top_k:
      logits = keep_top_k(logits, self.top_k)
    return keep_top_p(logits, self.top_p) if self.top_p < 1 else logits

  def sample(
    self,
    logits: Logits,
    seen: Bool[Array, "batch vocab"],
    seeds: Int[Array, " batch"],
    positions: Int[Array, " batch"],
  ) -> Int[Array, " batch"]:
    """A token of each row, by a key of the row's seed and position alone: the other rows change
    nothing.

    Args:
      logits: of the next token.
      seen: which tokens the row has; read for the repetition penalty alone.
      seeds: of each row.
      positions: that the tokens will have.
    """
    logits = self.adjusted(logits, seen)
    if self.temperature == 0:
      return jnp.argmax(logits, axis=-1).astype(jnp.int32)

    def sample_row(row, seed, position):
      return jax.random.categorical(jax.random.fold_in(jax.random.key(seed), position), row)

    return jax.vmap(sample_row)(logits, seeds, positions).astype(jnp.int32)
