"""LLaMA 1 and 2.

Touvron et al., "LLaMA: Open and Efficient Foundation Language Models", 2023, §2.2, and "Llama 2:
Open Foundation and Fine-Tuned Chat Models", 2023, §2.2. Here: the decoder in all published sizes,
pre-norm with RMSNorm, rotary positions, SwiGLU (Shazeer, 2020) and grouped queries (Ainslie et al.,
2023; Llama 2's 70B), without a bias anywhere; and its reading with a cache, by the same function
for prompts and for single tokens.

The paper gives no initialisation; it is N(0, 0.02), as in Hugging Face's code. Fields beyond the
papers, for the models that took this form over: `tie_embeddings`, `rope_theta`.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vlx.core.system import Aux, Variables, text_inputs
from vlx.losses.sequence import cross_entropy
from vlx.models.layers import apply
from vlx.models.layers.cache import Cache
from vlx.models.layers.linear import flat_dot_general
from vlx.models.layers.norm import RMSNorm
from vlx.models.layers.position import rotary_angles, rotate
from vlx.ops.attention import attention
from vlx.ops.axes import split_batch
from vlx.ops.masks import Causal, Mask, UpTo

# LLaMA, Table 2; Llama 2, Table 1. Widths of the MLP and ε are those of the released `params.json`:
# 2/3 · 4 · width rounded up to a multiple of 256 (70B: times 1.3, of 4096).
_FIELDS = ("width", "depth", "num_heads", "num_groups", "mlp_dim", "context_length", "epsilon")
SIZES = {
  name: dict(zip(_FIELDS, values))
  for name, values in {
    "1-7B": (4096, 32, 32, 32, 11008, 2048, 1e-6),
    "1-13B": (5120, 40, 40, 40, 13824, 2048, 1e-6),
    "1-33B": (6656, 60, 52, 52, 17920, 2048, 1e-6),
    "1-65B": (8192, 80, 64, 64, 22016, 2048, 1e-5),
    "2-7B": (4096, 32, 32, 32, 11008, 4096, 1e-5),
    "2-13B": (5120, 40, 40, 40, 13824, 4096, 1e-5),
    "2-70B": (8192, 80, 64, 8, 28672, 4096, 1e-5),
  }.items()
}


def published_size(name: str) -> dict:
  """Fields of a published model by generation and size: "1-33B", "2-70B"."""
  return dict(SIZES[name], vocab_size=32000)


def _dense(features, dtype, name, axis=-1):
  return nn.DenseGeneral(
    features,
    axis=axis,
    use_bias=False,
    dtype=dtype,
    kernel_init=nn.initializers.normal(0.02),
    dot_general=flat_dot_general,
    name=name,
  )


class GroupedQueryAttention(nn.Module):
  """Causal attention with rotary positions; `num_groups` heads of keys and values serve all
  queries'.

  With a cache it writes its keys and values there and attends to the layer's slots, else to its
  own.
  """

  num_heads: int
  num_groups: int
  dtype: str

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "batch length width"],
    angles: Float[Array, "#batch length half"],
    mask: Mask,
    cache: Cache | None,
    layer: Int[Array, ""] | int,
  ) -> tuple[Float[Array, "batch length width"], Cache | None]:
    head_dim = x.shape[-1] // self.num_heads
    project = lambda heads, name: _dense((heads, head_dim), self.dtype, name)(x)
    queries = rotate(project(self.num_heads, "query"), angles)
    keys = rotate(project(self.num_groups, "key"), angles)
    values = project(self.num_groups, "value")
    if cache is not None:
      cache = cache.write(layer, keys, values)
      keys, values = cache.layer(layer)
    y = attention(queries, keys.astype(queries.dtype), values.astype(queries.dtype), mask=mask)
    return _dense(x.shape[-1], self.dtype, "out", axis=(-2, -1))(y), cache


class SwiGLU(nn.Module):
  """down(silu(gate(x)) · up(x)) (Shazeer, 2020, eq. 6)."""

  mlp_dim: int
  dtype: str

  @nn.compact
  def __call__(self, x: Float[Array, "batch length width"]) -> Float[Array, "batch length width"]:
    gate, up = (_dense(self.mlp_dim, self.dtype, name)(x) for name in ("gate", "up"))
    return _dense(x.shape[-1], self.dtype, "down")(nn.silu(gate) * up)


class Block(nn.Module):
  """One layer, for `nn.scan`: ((x, cache), layer, angles, mask) → ((x, cache), None).

  For callers that make the collection `intermediates` mutable, its output is sown there as
  `hidden`.
  """

  num_heads: int
  num_groups: int
  mlp_dim: int
  epsilon: float
  dtype: str

  @nn.compact
  def __call__(self, carry, layer, angles, mask):
    x, cache = carry
    x = split_batch(x)
    y = RMSNorm(self.epsilon, self.dtype, name="attention_norm")(x)
    attend = GroupedQueryAttention(self.num_heads, self.num_groups, self.dtype, name="attention")
    y, cache = attend(y, angles, mask, cache, layer)
    x = x + y
    y = RMSNorm(self.epsilon, self.dtype, name="mlp_norm")(x)
    x = x + SwiGLU(self.mlp_dim, self.dtype, name="mlp")(y)
    self.sow("intermediates", "hidden", x)
    return (x, cache), None


class LLaMA(nn.Module):
  """The decoder. Texts are padded on the right, where no real token sees the padding.

  Parameters stand under `blocks/…` with a leading depth axis, or under `blocks_0/…`, `blocks_1/…`
  where the layers are not `scanned`: for decoding, where a layer's slice of the stack would be
  copied at every token. A system that puts something else among the words' embeddings calls
  `embed`, `decode` and `logits` by itself.
  """

  vocab_size: int
  width: int
  depth: int
  num_heads: int
  num_groups: int
  mlp_dim: int
  context_length: int
  epsilon: float
  rope_theta: float = 10000.0
  tie_embeddings: bool = False
  remat: bool = False
  scanned: bool = True
  unroll: int = 1
  dtype: str = "float32"

  def setup(self):
    if self.width % self.num_heads or self.num_heads % self.num_groups:
      raise ValueError(
        f"width {self.width}, {self.num_heads} heads and {self.num_groups} groups do not divide one another"
      )
    normal = nn.initializers.normal(0.02)
    self.token_embedding = nn.Embed(
      self.vocab_size, self.width, embedding_init=normal, dtype=self.dtype
    )
    # prevent_cse is for remat outside of a loop; inside one it only costs speed.
    block = nn.remat(Block, prevent_cse=False) if self.remat else Block
    fields = dict(
      num_heads=self.num_heads,
      num_groups=self.num_groups,
      mlp_dim=self.mlp_dim,
      epsilon=self.epsilon,
      dtype=self.dtype,
    )
    if self.scanned:
      self.blocks = nn.scan(
        block,
        variable_axes={"params": 0, "intermediates": 0},
        split_rngs={"params": True},
        in_axes=(0, nn.broadcast, nn.broadcast),
        length=self.depth,
        unroll=self.unroll,
      )(**fields)
    else:
      self.blocks = [block(**fields) for _ in range(self.depth)]
    self.final_norm = RMSNorm(self.epsilon, self.dtype)
    if not self.tie_embeddings:
      self.head = nn.Dense(self.vocab_size, use_bias=False, dtype=self.dtype, kernel_init=normal)

  @nn.nowrap
  def empty_cache(self, batch: int, slots: int) -> Cache:
    """For `batch` texts of up to `slots` tokens each."""
    if slots > self.context_length:
      raise ValueError(f"a cache of {slots} tokens; this model reads {self.context_length}")
    head_dim = self.width // self.num_heads
    return Cache.empty(
      self.depth, batch, slots, self.num_groups, head_dim, self.dtype, self.scanned
    )

  def embed(self, text: Int[Array, "batch length"]) -> Float[Array, "batch length width"]:
    return self.token_embedding(text)

  def decode(
    self,
    x: Float[Array, "batch length width"],
    text_mask: Bool[Array, "batch length"] | None = None,
    cache: Cache | None = None,
  ) -> tuple[Float[Array, "batch length width"], Cache | None]:
    """Embeddings → normed output of the last layer, and the cache after it.

    Args:
      x: of the next tokens of each row: from position 0, or after what the cache holds.
      text_mask: which of them are real, in each row a prefix; only a cache needs to know. All where
        None. A row without any stays as it is.
      cache: of `empty_cache` or an earlier call, with slots enough for the longest row.

    Raises:
      ValueError: for a cache of another batch, for more positions than `context_length`.
    """
    x, cache = self.layers(x, text_mask, cache)
    return self.final_norm(x), cache

  def layers(
    self,
    x: Float[Array, "batch length width"],
    text_mask: Bool[Array, "batch length"] | None = None,
    cache: Cache | None = None,
  ) -> tuple[Float[Array, "batch length width"], Cache | None]:
    """`decode` without the last norm.

    A system that puts layers of its own between these takes the stack in groups: scanned parameters
    `[L, …]` reshaped to `[G, L/G, …]`, and this method of a clone of depth L/G with each group's.
    """
    batch, length, _ = x.shape
    if length > self.context_length:
      raise ValueError(f"texts of {length} tokens; this model reads {self.context_length}")
    if cache is None:
      positions, mask = jnp.arange(length)[None], Causal()
    else:
      if len(cache.lengths) != batch:
        raise ValueError(f"{batch} texts, but a cache for {len(cache.lengths)}")
      positions = cache.positions(length)
      mask = UpTo(positions)
    angles = rotary_angles(positions, self.width // self.num_heads, self.rope_theta)
    if self.scanned:
      (x, cache), _ = self.blocks((x, cache), jnp.arange(self.depth), angles, mask)
    else:
      for layer, block in enumerate(self.blocks):
        (x, cache), _ = block((x, cache), layer, angles, mask)
    if cache is not None:
      cache = cache.advance(jnp.ones((batch, length), bool) if text_mask is None else text_mask)
    return x, cache

  def states(self, text: Int[Array, "batch length"]) -> Float[Array, "batch length width"]:
    """What the head would see of each token."""
    return self.decode(self.embed(text))[0]

  def logits(self, x: Float[Array, "*axes width"]) -> Float[Array, "*axes vocab"]:
    """Logits of the next token, f32."""
    x = self.token_embedding.attend(x) if self.tie_embeddings else self.head(x)
    return x.astype(jnp.float32)

  def __call__(
    self,
    text: Int[Array, "batch length"],
    text_mask: Bool[Array, "batch length"] | None = None,
    cache: Cache | None = None,
  ) -> tuple[Float[Array, "batch length vocab"], Cache | None]:
    """Logits of the token after each, and the cache with the texts in it; see `decode`."""
    x, cache = self.decode(self.embed(text), text_mask, cache)
    return self.logits(x), cache


@dataclasses.dataclass(frozen=True)
class LLaMAEncoder:
  """The layers without a head, as public files of `LlamaModel` have them; it has no loss of its
  own.
  """

  decoder: LLaMA

  @property
  def vocab_size(self) -> int:
    return self.decoder.vocab_size

  @property
  def text_length(self) -> int:
    return self.decoder.context_length

  def init(self, rng):
    return apply.init(self.decoder, rng, text_inputs(self.text_length), "text", method="states")

  def encode_text(
    self, variables, text: Int[Array, "batch length"], text_mask: Bool[Array, "batch length"]
  ) -> Float[Array, "batch length width"]:
    """The normed output of the last layer. Real tokens are a prefix, and see none behind them."""
    del text_mask
    return apply.infer(self.decoder, variables, text, method="states")


@dataclasses.dataclass(frozen=True)
class LanguageModel:
  """The system. Batches hold `text` and `text_mask`; a text is learned from its second token on.

  With `answers_only` they hold `target_mask` too, and the tokens that it marks alone are learned.
  """

  decoder: LLaMA
  train_length: int = 0  # tokens of a text in training; 0: as many as the decoder reads
  answers_only: bool = False

  @property
  def context_length(self) -> int:
    return self.decoder.context_length

  @property
  def vocab_size(self) -> int:
    return self.decoder.vocab_size

  def inputs(self):
    text = text_inputs(self.train_length or self.context_length)
    return {**text, "target_mask": text["text_mask"]} if self.answers_only else text

  def init(self, rng):
    return apply.init(self.decoder, rng, self.inputs(), "text")

  def loss(self, variables, batch, rng, *, step, train, frozen):
    """Cross entropy of each next token, the mean over all real ones of the global batch."""
    del rng, step, train, frozen
    text, targets = batch["text"], batch["target_mask" if self.answers_only else "text_mask"]
    term = cross_entropy(self.token_logits(variables, text[:, :-1]), text[:, 1:], targets[:, 1:])
    return {"nats_per_token": term}, Aux({"perplexity": jnp.exp(term.mean)}, variables["state"])

  def accumulates(self):
    return ""

  def token_logits(
    self, variables: Variables, text: Int[Array, "batch length"]
  ) -> Float[Array, "batch length vocab"]:
    """Logits of the token after each. What a text is padded with changes nothing before it."""
    return apply.infer(self.decoder, variables, text)[0]

  def empty_cache(self, batch: int, slots: int) -> Cache:
    """For `batch` texts of up to `slots` tokens."""
    return self.decoder.empty_cache(batch, slots)

  def extend_cache(
    self, variables: Variables, inputs, cache: Cache
  ) -> tuple[Float[Array, "batch vocab"], Cache]:
    """Reads texts, or single tokens: logits of what comes after the last real one of each row, and
    the cache.

    The logits of a row without a real token mean nothing.
    """
    text, text_mask = inputs["text"], inputs["text_mask"]
    call = functools.partial(apply.infer, self.decoder, variables)
    x, cache = call(call(text, method="embed"), text_mask, cache, method="decode")
    last = jnp.maximum(text_mask.sum(axis=1) - 1, 0)
    return call(jnp.take_along_axis(x, last[:, None, None], axis=1)[:, 0], method="logits"), cache

  def for_decoding(self, variables: Variables) -> tuple["LanguageModel", Variables]:
    """The same model in the form that decodes fastest: layers one by one, the tied head a matrix of
    its own.

    Each of its products then reads an array as it lies there. The variables are copies.
    """
    params = dict(variables["params"])
    if self.decoder.scanned:
      blocks = params.pop("blocks")
      for layer in range(self.decoder.depth):
        params[f"blocks_{layer}"] = jax.tree.map(lambda x: x[layer], blocks)
    if self.decoder.tie_embeddings:
      params["head"] = {"kernel": params["token_embedding"]["embedding"].T}
    decoder = self.decoder.clone(scanned=False, tie_embeddings=False)
    return dataclasses.replace(self, decoder=decoder), {**variables, "params": params}
