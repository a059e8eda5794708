"""LLaVA (Liu et al., 2023): a CLIP's tower, a projector, a LLaMA. A toy of the real mechanism."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from vlx.core.capabilities import EncodesImages, GeneratesText
from vlx.core.system import Aux, image_input, own, part, text_inputs
from vlx.losses.sequence import cross_entropy
from vlx.models.layers import apply


class Projector(nn.Module):
  width: int

  @nn.compact
  def __call__(self, x):
    return nn.Dense(self.width, name="out")(nn.gelu(nn.Dense(self.width, name="hidden")(x)))


@dataclasses.dataclass(frozen=True)
class LLaVA:
  """An image's tokens, of the tower's last layer but one, stand where `image_id` is in the text."""

  tower: EncodesImages
  language_model: GeneratesText
  image_size: int
  image_tokens: int
  tower_width: int
  image_id: int
  text_length: int = 32

  @property
  def projector(self):
    return Projector(self.language_model.decoder.width)

  @property
  def context_length(self):
    return self.language_model.context_length

  @property
  def vocab_size(self):
    return self.language_model.vocab_size

  def inputs(self):
    text = text_inputs(self.text_length)
    return {"image": image_input(self.image_size), **text, "target_mask": text["text_mask"]}

  def init(self, rng):
    tokens = jax.ShapeDtypeStruct((self.image_tokens, self.tower_width), jnp.float32)
    return apply.init(self.projector, rng, {"tokens": tokens}, "tokens")

  def _call(self, v):
    return functools.partial(apply.infer, self.language_model.decoder, part(v, "language_model"))

  def _embed(self, v, text, image):
    """The words' embeddings, and the image's where it stands."""
    words = self._call(v)(text, method="embed")
    if image is None:
      return words
    seen = self.tower.encode_image(part(v, "tower"), image, layer=-2)[:, 1:]
    tokens = apply.infer(
      self.projector, own(v, "tower", "language_model"), seen.astype(jnp.float32)
    )
    here = text == self.image_id
    place = jnp.clip(jnp.cumsum(here, axis=1) - 1, 0, self.image_tokens - 1)
    return jnp.where(here[..., None], jnp.take_along_axis(tokens, place[..., None], axis=1), words)

  def loss(self, variables, batch, rng, *, step, train, frozen):
    del rng, step, train, frozen
    text, call = batch["text"], self._call(variables)
    x, _ = call(self._embed(variables, text[:, :-1], batch["image"]), method="decode")
    words = cross_entropy(call(x, method="logits"), text[:, 1:], batch["target_mask"][:, 1:])
    return {"nats_per_token": words}, Aux({}, variables["state"])

  def accumulates(self):
    return ""

  def for_decoding(self, v):
    inner, theirs = self.language_model.for_decoding(part(v, "language_model"))
    found = {kind: {**v[kind], "language_model": theirs[kind]} for kind in ("params", "state")}
    return dataclasses.replace(self, language_model=inner), found

  def empty_cache(self, batch, slots):
    return self.language_model.empty_cache(batch, slots)

  def extend_cache(self, v, inputs, cache):
    text, text_mask, call = inputs["text"], inputs["text_mask"], self._call(v)
    x, cache = call(self._embed(v, text, inputs.get("image")), text_mask, cache, method="decode")
    last = jnp.maximum(text_mask.sum(axis=1) - 1, 0)
    return call(jnp.take_along_axis(x, last[:, None, None], axis=1)[:, 0], method="logits"), cache
