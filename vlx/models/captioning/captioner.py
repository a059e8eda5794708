"""The parts that captioners share: any vision tower before them, the likelihood of a caption,
decoding.
"""

import math
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import flax.linen as nn
import jax
from einops import rearrange
from jaxtyping import Array, Float, Int

from vlx.core.system import Variables, image_input, text_inputs
from vlx.inference import decoding
from vlx.models.layers import apply
from vlx.models.vision.inception import GoogLeNetTower
from vlx.models.vision.resnet import ResNetTower
from vlx.models.vision.vgg import VGGTower
from vlx.models.vision.vit import VisionTransformer

# A config's section is that of the first whose required fields it has; GoogLeNet requires none.
Encoder = VisionTransformer | ResNetTower | VGGTower | GoogLeNetTower


def encode(
  encoder: nn.Module, image: Float[Array, "batch height width 3"], *, train: bool
) -> tuple[Float[Array, "batch features"], Float[Array, "batch rows columns features"]]:
  """(pooled features, map) of a tower."""
  pooled, features = encoder(image, train=train)
  if features.ndim == 3:  # tokens of patches
    features = features[:, encoder.pool == "cls" :]
    features = rearrange(features, "b (h w) d -> b h w d", h=math.isqrt(features.shape[1]))
  return pooled, features


@runtime_checkable
class SaysWords(Protocol):
  """Gives the probabilities of a caption's words one after another, as an ensemble asks for them."""

  start_id: int
  end_id: int

  @property
  def vocab_size(self) -> int: ...

  def inputs(self) -> dict[str, jax.ShapeDtypeStruct]: ...

  def decoder(
    self, variables: Variables, image: Float[Array, "batch height width 3"], beam_size: int
  ) -> tuple[decoding.Step, Any]:
    """(step, state) for `vlx.inference.decoding.beam_search`."""
    ...

  def word_logits(
    self,
    variables: Variables,
    image: Float[Array, "batch height width 3"],
    text: Int[Array, "batch length"],
  ) -> Float[Array, "batch next vocabulary"]:
    """Logits of the word after each of text[:, :-1]."""
    ...


class BeamSearched:
  """`CaptionsImages` by a subclass's `decoder`, `start_id` and `end_id`."""

  def caption(
    self, variables: Mapping[str, Any], inputs: Mapping[str, jax.Array], search: decoding.Search
  ) -> tuple[Int[Array, "batch beam length"], Float[Array, "batch beam"]]:
    """The likeliest captions of `image`, best first, and their scores
    (`vlx.inference.decoding`).
    """
    image = inputs["image"]
    step, state = self.decoder(variables, image, search.beam_size)
    return decoding.beam_search(
      step, state, len(image), search, start_id=self.start_id, end_id=self.end_id
    )


class Captioner(BeamSearched):
  """A system around a subclass's `network`, a Linen module of (image, text, …) with an `encoder`.

  A subclass is a frozen dataclass with the fields `encoder`, `text_length`, `start_id` and `end_id`.
  Its network has the methods `logits`, (image, text) → logits of the word after each but the last,
  `start`, image → (what is the same at every step, state before the first word), and `next`, (that,
  state, tokens) → (logits, state). Batch statistics, if any, are in `state`.
  """

  def inputs(self):
    return {"image": image_input(self.encoder.image_size), **text_inputs(self.text_length)}

  def init(self, rng):
    return apply.init(self.network, rng, self.inputs(), "image", "text")

  def _batch_statistics(self) -> str:
    """Why a batch's parts do not make up the whole, as far as the tower is concerned."""
    return "batch statistics are of the part" if self.encoder.has_batch_statistics else ""

  def _network_variables(self, variables):
    """Without what is no collection of Flax's."""
    return {
      **variables,
      "state": {k: v for k, v in variables["state"].items() if k == "batch_stats"},
    }

  def _infer(self, variables, *inputs, method=None, **options):
    return apply.infer(
      self.network, self._network_variables(variables), *inputs, method=method, **options
    )

  def decoder(self, variables, image, beam_size):
    context, state = self._infer(variables, image, method="start")

    def step(state, tokens):
      return self._infer(variables, context, state, tokens, beam_size, method="next")

    return step, state

  def word_logits(self, variables, image, text):
    return self._infer(variables, image, text, method="logits")
