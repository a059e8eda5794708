"""Flamingo (Alayrac et al., 2022), a toy of it: gated layers between those of a frozen language
model.
"""

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Int

from vlx.core.capabilities import EncodesImages, GeneratesText
from vlx.core.system import Aux, image_input, own, part, text_inputs
from vlx.losses.sequence import cross_entropy
from vlx.models.layers import apply
from vlx.models.layers.attention import MultiHeadAttention
from vlx.models.layers.cache import Cache
from vlx.ops.masks import Segments


class Gated(nn.Module):
  """x + tanh(α) attention to the image, then x + tanh(α) MLP; α starts at 0 (§2.2): at first it
  is not there.
  """

  num_heads: int

  @nn.compact
  def __call__(self, x, tokens, mask):
    gate = lambda name: jnp.tanh(self.param(name, nn.initializers.zeros, ()))
    seen = MultiHeadAttention(self.num_heads, name="attention")(
      nn.LayerNorm(name="attention_norm")(x), mask, tokens
    )
    x = x + gate("attention_alpha") * seen
    y = nn.gelu(nn.Dense(2 * x.shape[-1], name="hidden")(nn.LayerNorm(name="mlp_norm")(x)))
    return x + gate("mlp_alpha") * nn.Dense(x.shape[-1], name="out")(y)


class Seen(NamedTuple):
  """What the texts hold, and what they look at."""

  text: Cache
  tokens: Float[Array, "batch tokens width"]
  images: Int[Array, " batch"]  # of each row, that have begun

  @property
  def lengths(self):
    return self.text.lengths


@dataclasses.dataclass(frozen=True)
class Flamingo:
  """A gated layer before every `every` of the language model's; the image stands where
  `image_id` is in the text.
  """

  tower: EncodesImages
  language_model: GeneratesText
  image_size: int
  tower_width: int
  image_keys: int  # the tower's tokens
  image_id: int
  every: int = 2
  text_length: int = 32
  image_tokens: int = 1  # in the text

  @property
  def _decoder(self):
    return self.language_model.decoder

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
    x, tokens = (
      jnp.zeros((1, n, d))
      for n, d in ((1, self._decoder.width), (self.image_keys, self.tower_width))
    )
    mask = Segments.per_image(jnp.ones((1, 1), bool), 1, self.image_keys)
    layer = lambda rng: Gated(self._decoder.num_heads).init(rng, x, tokens, mask)["params"]
    return {
      "params": {
        "gated": jax.vmap(layer)(jax.random.split(rng, self._decoder.depth // self.every))
      },
      "state": {},
    }

  def _tokens(self, v, image):
    return self.tower.encode_image(part(v, "tower"), image).astype(jnp.float32)

  def _decode(self, v, text, seen_before, tokens, text_mask=None, cache=None):
    """Normed output of the last layer, and the cache: one scan over groups of a gated layer and
    `every` frozen ones.
    """
    inner, theirs, decoder = (
      self._decoder.clone(depth=self.every),
      part(v, "language_model"),
      self._decoder,
    )
    starts = (text == self.image_id) & (True if text_mask is None else text_mask)
    mask = Segments(
      seen_before[:, None] + jnp.cumsum(starts, axis=1), jnp.ones(tokens.shape[:2], jnp.int32)
    )

    def group(x, layers):
      gated, blocks, held = layers
      x = Gated(decoder.num_heads).apply({"params": gated}, x, tokens, mask)
      held = None if cache is None else Cache(*held, cache.lengths)
      x, held = inner.apply({"params": {"blocks": blocks}}, x, text_mask, held, method="layers")
      return x, None if held is None else held[:2]

    grouped = lambda tree: jax.tree.map(
      lambda a: rearrange(a, "(g l) ... -> g l ...", l=self.every), tree
    )
    x = apply.infer(decoder, theirs, text, method="embed")
    held = None if cache is None else grouped((cache.keys, cache.values))
    layers = (
      own(v, "tower", "language_model")["params"]["gated"],
      grouped(theirs["params"]["blocks"]),
      held,
    )
    x, held = jax.lax.scan(group, x.astype(jnp.float32), layers)
    if cache is not None:
      held = jax.tree.map(lambda a: rearrange(a, "g l ... -> (g l) ..."), held)
      cache = Cache(*held, cache.lengths).advance(text_mask)
    x = decoder.apply(
      {"params": theirs["params"]}, x, method=lambda module, x: module.final_norm(x)
    )
    return x, cache, seen_before + starts.sum(axis=1)

  def loss(self, variables, batch, rng, *, step, train, frozen):
    del rng, step, train, frozen
    text = batch["text"]
    none = jnp.zeros(len(text), jnp.int32)
    x, _, _ = self._decode(variables, text[:, :-1], none, self._tokens(variables, batch["image"]))
    logits = apply.infer(self._decoder, part(variables, "language_model"), x, method="logits")
    words = cross_entropy(logits, text[:, 1:], batch["target_mask"][:, 1:])
    return {"nats_per_token": words}, Aux({}, variables["state"])

  def accumulates(self):
    return ""

  def for_decoding(self, v):
    return self, v

  def empty_cache(self, batch, slots):
    tokens = jnp.zeros((batch, self.image_keys, self.tower_width))
    return Seen(self.language_model.empty_cache(batch, slots), tokens, jnp.zeros(batch, jnp.int32))

  def extend_cache(self, v, inputs, cache):
    text, text_mask = inputs["text"], inputs["text_mask"]
    tokens = self._tokens(v, inputs["image"]) if "image" in inputs else cache.tokens
    x, held, images = self._decode(v, text, cache.images, tokens, text_mask, cache.text)
    last = jnp.maximum(text_mask.sum(axis=1) - 1, 0)
    x = jnp.take_along_axis(x, last[:, None, None], axis=1)[:, 0]
    logits = apply.infer(self._decoder, part(v, "language_model"), x, method="logits")
    return logits, Seen(held, tokens, images)
