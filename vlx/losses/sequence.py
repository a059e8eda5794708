"""The likelihood of tokens, some of which are padding."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vlx.core.system import Term


def token_log_likelihood(
  logits: Float[Array, "batch length vocabulary"],
  targets: Int[Array, "batch length"],
  mask: Bool[Array, "batch length"],
) -> Float[Array, "batch length"]:
  """log p of each target, zero where the mask is False."""
  # The target's logit minus the normaliser: log-probabilities of the other words are never written.
  chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
  return jnp.where(mask, chosen - jax.nn.logsumexp(logits, axis=-1), 0.0)


def cross_entropy(
  logits: Float[Array, "batch length vocabulary"],
  targets: Int[Array, "batch length"],
  mask: Bool[Array, "batch length"],
  weight: float = 1.0,
) -> Term:
  """−log p of a target, the mean over those that the mask keeps, in nats."""
  return Term(-token_log_likelihood(logits, targets, mask).sum(), mask.sum(), weight)
