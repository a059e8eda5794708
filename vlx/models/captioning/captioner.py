"""What captioners share: any vision tower before them, the likelihood of a caption, decoding."""

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from vlx.inference import beam_search
from vlx.models.vision.inception import GoogLeNetTower
from vlx.models.vision.resnet import ResNetTower
from vlx.models.vision.vgg import VGGTower
from vlx.models.vision.vit import VisionTransformer

# A config's section is that of the first whose required fields it has; GoogLeNet requires none.
Encoder = VisionTransformer | ResNetTower | VGGTower | GoogLeNetTower


def encode(
    encoder: nn.Module, image: Float[Array, "batch height width 3"], *, finetune: bool, train: bool
) -> tuple[Float[Array, "batch features"], Float[Array, "batch rows columns features"]]:
  """(pooled features, map) of a tower; without `finetune` it is a constant, its batch statistics too."""
  pooled, features = encoder(image, train=train and finetune)
  if not finetune:
    pooled, features = jax.lax.stop_gradient((pooled, features))
  if features.ndim == 3:  # tokens of patches
    features = features[:, encoder.pool == "cls" :]
    features = rearrange(features, "b (h w) d -> b h w d", h=math.isqrt(features.shape[1]))
  return pooled, features


def token_log_likelihood(
    logits: Float[Array, "batch length vocabulary"], targets: Int[Array, "batch length"],
    mask: Bool[Array, "batch length"],
) -> Float[Array, "batch length"]:
  """log p of each target, zero where the mask is False."""
  # The target's logit minus the normaliser: log-probabilities of the other words are never written.
  chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
  return jnp.where(mask, chosen - jax.nn.logsumexp(logits, axis=-1), 0.0)


class Captioner:
  """A system around a subclass's `network`, a Linen module of (image, text, …).

  A subclass is a frozen dataclass with the fields `start_id` and `end_id`. Its network has the methods
  `start`, image → (what is the same at every step, state before the first word), and `next`,
  (that, state, tokens) → (logits, state). Batch statistics, if any, are in `state`.
  """

  def _apply(self, variables, *args, **kwargs):
    collections = {k: v for k, v in variables["state"].items() if k == "batch_stats"}
    return self.network.apply({"params": variables["params"], **collections}, *args, **kwargs)

  def _decoder(self, variables, image, beam_size):
    """(step, state) for `vlx.inference.beam_search`."""
    context, state = self._apply(variables, image, method="start")

    def step(state, tokens):
      logits, state = self._apply(variables, context, state, tokens, beam_size, method="next")
      return jax.nn.log_softmax(logits), state

    return step, state

  def caption(
      self, variables: Mapping[str, Any], image: Float[Array, "batch height width 3"], *,
      beam_size: int = 20, max_length: int = 20, length_penalty: float = 0.0, length_norm: str = "gnmt",
  ) -> tuple[Int[Array, "batch beam length"], Float[Array, "batch beam"]]:
    """The likeliest captions, best first, and their scores (`vlx.inference.beam_search`)."""
    step, state = self._decoder(variables, image, beam_size)
    return beam_search.beam_search(
        step, state, len(image), beam_size=beam_size, start_id=self.start_id, end_id=self.end_id,
        max_length=max_length, length_penalty=length_penalty, length_norm=length_norm,
    )

  def sample(
      self, variables: Mapping[str, Any], image: Float[Array, "batch height width 3"], rng: jax.Array, *,
      max_length: int = 20, temperature: float = 1.0,
  ) -> tuple[Int[Array, "batch length"], Float[Array, "batch"]]:
    """A caption of each picture, drawn word by word, and its log-probability."""
    step, state = self._decoder(variables, image, 1)
    return beam_search.sample(
        step, state, len(image), rng, start_id=self.start_id, end_id=self.end_id, max_length=max_length,
        temperature=temperature,
    )

  def log_likelihood(
      self, variables, image: Float[Array, "batch height width 3"], text: Int[Array, "batch length"],
      text_mask: Bool[Array, "batch length"],
  ) -> Float[Array, "batch"]:
    """log p(text | image), the end token's with the words'."""
    logits = self._apply(variables, image, text, method="logits")
    return token_log_likelihood(logits, text[:, 1:], text_mask[:, 1:]).sum(axis=1)
