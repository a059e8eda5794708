"""DALL-E.

Ramesh et al., "Zero-Shot Text-to-Image Generation", 2021. Here: one decoder over the tokens of a
text and of its image (§2.2), with the sparse masks of Figure 11 in the order of appendix B.1, the
embeddings of Figure 10, and the loss of §2.2; sampling with a cache, after a text and, if wanted,
the upper part of an image.

The tokens: a text begins with its start token and is as long as the context; where it has ended,
each position has a padding embedding of its own. The image's positions are those of its grid; the
first takes the start of the image, each other one the code before it, so a position's logits are of
its own code. Text and image have heads of their own, which is one softmax over both vocabularies
with the other's tokens left out. Text beyond a caption's end is not among the text tokens that the
loss is averaged over.

The released code has no transformer: layers are pre-norm with a bias everywhere and tanh-GELU,
initialised as GPT-2. Fields beyond the paper: `pattern` and `last_mask` (for other masks),
`text_dropout`, which trains for classifier-free guidance at sampling, a later practice (Ho &
Salimans, "Classifier-Free Diffusion Guidance", 2022).
"""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from vlx.core.capabilities import TokenizesImages
from vlx.core.errors import UserError
from vlx.core.system import Aux, image_input, own, part, text_inputs
from vlx.inference.decoding import sample_first, sample_more
from vlx.inference.sampling import Sampling
from vlx.losses.sequence import cross_entropy
from vlx.models.layers import apply
from vlx.models.layers.cache import Cache
from vlx.models.layers.linear import flat_dot_general
from vlx.models.layers.transformer import MlpBlock
from vlx.ops.attention import attention
from vlx.ops.axes import split_batch
from vlx.ops.masks import At, Causal, Column, Conv, Mask, Row

MASKS = ("full", "row", "column", "conv")


def published_size() -> dict:
  """Fields of the 12-billion-parameter model (appendix B.1)."""
  return dict(
    vocab_size=16_384, context_length=256, width=3968, depth=64, num_heads=62, mlp_dim=4 * 3968
  )


Heads = Float[Array, "batch length heads head_dim"]


@dataclasses.dataclass(frozen=True)
class SequenceLayout:
  """Where the text ends and how the image is laid out; what a layer's kind of mask is there."""

  text: int
  rows: int
  columns: int
  conv_size: int

  @property
  def length(self) -> int:
    return self.text + self.rows * self.columns

  def mask(self, kind: str) -> Mask:
    match kind:
      case "full":
        return Causal()
      case "row":
        return Row(self.text, self.columns)
      case "column":
        return Column(self.text, self.rows, self.columns)
      case _:
        return Conv(self.text, self.columns, self.conv_size)

  def attend(self, kind: str, queries: Heads, keys: Heads, values: Heads) -> Heads:
    """Attention of the whole sequence to itself. A column's positions are put together: a kernel
    then has few tiles.
    """
    if kind != "column":
      return attention(queries, keys, values, mask=self.mask(kind))
    mask = Column(self.text, self.rows, self.columns, transposed=True)

    def turned(pattern, **sizes):
      return lambda x: jnp.concatenate(
        [x[:, : self.text], rearrange(x[:, self.text :], pattern, **sizes)], axis=1
      )

    by_column = turned("b (r c) h d -> b (c r) h d", r=self.rows)
    by_row = turned("b (c r) h d -> b (r c) h d", c=self.columns)
    return by_row(attention(*map(by_column, (queries, keys, values)), mask=mask))


class SparseAttention(nn.Module):
  """Attention under the mask `kinds[kind]`; `kind` is data, so that scanned layers share a
  program.
  """

  num_heads: int
  layout: SequenceLayout
  kinds: tuple[str, ...]
  out_std: float
  dtype: str

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "batch length width"],
    kind: Int[Array, ""],
    cache: Cache | None,
    layer: Int[Array, ""],
  ) -> tuple[Float[Array, "batch length width"], Cache | None]:
    width = x.shape[-1]

    def dense(features, std, name, axis=-1):
      return nn.DenseGeneral(
        features,
        axis=axis,
        dtype=self.dtype,
        kernel_init=nn.initializers.normal(std),
        dot_general=flat_dot_general,
        name=name,
      )

    queries, keys, values = (
      dense((self.num_heads, width // self.num_heads), 0.02, name)(x)
      for name in ("query", "key", "value")
    )
    if cache is None:
      run = lambda name: lambda *operands: self.layout.attend(name, *operands)
    else:
      positions = cache.positions(x.shape[1])
      cache = cache.write(layer, keys, values)
      keys, values = (held.astype(queries.dtype) for held in cache.layer(layer))
      run = lambda name: (
        lambda *operands: attention(*operands, mask=At(self.layout.mask(name), positions))
      )
    # One branch is no branch: `switch` then calls it.
    y = jax.lax.switch(kind, [run(name) for name in self.kinds], queries, keys, values)
    return dense(width, self.out_std, "out", axis=(-2, -1))(y), cache


class Block(nn.Module):
  """One layer, for `nn.scan`: ((x, cache), layer, kind) → ((x, cache), None)."""

  num_heads: int
  mlp_dim: int
  layout: SequenceLayout
  kinds: tuple[str, ...]
  out_std: float
  dtype: str

  @nn.compact
  def __call__(self, carry, layer, kind):
    x, cache = carry
    x = split_batch(x)
    norm = lambda name: nn.LayerNorm(1e-5, dtype=self.dtype, name=name)
    attend = SparseAttention(
      self.num_heads, self.layout, self.kinds, self.out_std, self.dtype, name="attention"
    )
    y, cache = attend(norm("attention_norm")(x), kind, cache, layer)
    x = x + y
    normal = nn.initializers.normal
    x = x + MlpBlock(
      self.mlp_dim,
      "gelu_tanh",
      kernel_init=normal(0.02),
      out_init=normal(self.out_std),
      bias_init=nn.initializers.zeros,
      dtype=self.dtype,
      name="mlp",
    )(norm("mlp_norm")(x))
    return (x, cache), None


class DALLENetwork(nn.Module):
  """The decoder over `layout.text` text tokens and the image's codes."""

  layout: SequenceLayout
  masks: tuple[str, ...]  # a layer's each
  vocab_size: int
  num_codes: int
  width: int
  num_heads: int
  mlp_dim: int
  remat: bool
  unroll: int
  dtype: str

  def setup(self):
    normal = nn.initializers.normal(0.02)
    embed = lambda count: nn.Embed(count, self.width, embedding_init=normal)
    self.text_embedding, self.image_embedding = embed(self.vocab_size), embed(self.num_codes)
    vectors = lambda name, *shape: self.param(name, normal, (*shape, self.width))
    self.text_position = vectors("text_position", self.layout.text)
    self.padding = vectors("padding", self.layout.text)
    self.image_start = vectors("image_start")
    self.row_position = vectors("row_position", self.layout.rows)
    self.column_position = vectors("column_position", self.layout.columns)
    self.kinds = tuple(sorted(set(self.masks)))
    depth = len(self.masks)
    # prevent_cse is for remat outside of a loop; inside one it only costs speed.
    block = nn.remat(Block, prevent_cse=False) if self.remat else Block
    self.blocks = nn.scan(
      block,
      variable_axes={"params": 0},
      split_rngs={"params": True},
      in_axes=0,
      length=depth,
      unroll=self.unroll,
    )(self.num_heads, self.mlp_dim, self.layout, self.kinds, 0.02 * (2 * depth) ** -0.5, self.dtype)
    self.final_norm = nn.LayerNorm(1e-5)
    # In f32, as appendix D asks of logits.
    self.text_head = nn.Dense(self.vocab_size, kernel_init=normal)
    self.image_head = nn.Dense(self.num_codes, kernel_init=normal)

  @nn.nowrap
  def empty_cache(self, batch: int) -> Cache:
    head_dim = self.width // self.num_heads
    return Cache.empty(
      len(self.masks), batch, self.layout.length, self.num_heads, head_dim, self.dtype
    )

  def embed(
    self,
    text: Int[Array, "batch context"],
    text_mask: Bool[Array, "batch context"],
    ids: Int[Array, "batch count"],
  ) -> Float[Array, "batch length width"]:
    """The text, the start of the image and `count` codes (Figure 10)."""
    words = self.text_embedding(text) + self.text_position
    words = jnp.where(text_mask[..., None], words, self.padding)
    start = self.image_start + self.row_position[0] + self.column_position[0]
    start = jnp.broadcast_to(start, (len(text), 1, self.width))
    return jnp.concatenate([words, start, self.embed_codes(ids, 1)], axis=1)

  def embed_codes(
    self, ids: Int[Array, "batch count"], position: int | Int[Array, ""]
  ) -> Float[Array, "batch count width"]:
    """Codes as the inputs of the grid's positions from `position` on."""
    row, column = jnp.divmod(position + jnp.arange(ids.shape[1]), self.layout.columns)
    return self.image_embedding(ids) + self.row_position[row] + self.column_position[column]

  def decode(
    self, x: Float[Array, "batch length width"], cache: Cache | None = None
  ) -> tuple[Float[Array, "batch length width"], Cache | None]:
    """Embeddings of the whole sequence, or of what follows that in a cache → normed output, f32."""
    kinds = jnp.array([self.kinds.index(mask) for mask in self.masks])
    carry = (x.astype(self.dtype), cache)
    (x, cache), _ = self.blocks(carry, jnp.arange(len(self.masks)), kinds)
    if cache is not None:
      cache = cache.advance(jnp.ones(x.shape[:2], bool))
    return self.final_norm(x.astype(jnp.float32)), cache

  def image_logits(self, x: Float[Array, "*axes width"]) -> Float[Array, "*axes codes"]:
    return self.image_head(x)

  def __call__(
    self,
    text: Int[Array, "batch context"],
    text_mask: Bool[Array, "batch context"],
    ids: Int[Array, "batch cells"],
  ) -> tuple[Float[Array, "batch text_targets vocab"], Float[Array, "batch cells codes"]]:
    """Logits of the text's tokens but the first, and of all codes."""
    x, _ = self.decode(self.embed(text, text_mask, ids[:, :-1]))
    words, cells = jnp.split(x, [self.layout.text], axis=1)
    return self.text_head(words[:, :-1]), self.image_head(cells)


@dataclasses.dataclass(frozen=True)
class DALLE:
  """The system. Batches hold `image`, `text` and `text_mask`; the tokenizer is a part that is
  not trained.
  """

  tokenizer: TokenizesImages
  vocab_size: int
  context_length: int
  width: int
  depth: int
  num_heads: int
  mlp_dim: int
  pattern: tuple[str, ...] = ("row", "column", "row", "row")  # of the layers' masks, repeated
  last_mask: str = "conv"  # instead of the pattern's, in the last layer
  conv_size: int = 11
  text_weight: float = 1 / 8  # §2.2; the image's is 7/8
  text_dropout: float = 0.0  # how often a text is hidden whole in training
  remat: bool = False
  unroll: int = 1
  dtype: str = "float32"

  takes_mask = False

  def __post_init__(self):
    for kind in (*self.pattern, self.last_mask):
      if kind not in MASKS:
        raise ValueError(f"a layer's mask is one of {', '.join(MASKS)}, not {kind!r}")
    if self.width % self.num_heads:
      raise ValueError(f"width {self.width} does not divide into {self.num_heads} heads")

  @property
  def masks(self) -> tuple[str, ...]:
    """The mask of each layer, in order."""
    return (*(self.pattern[i % len(self.pattern)] for i in range(self.depth - 1)), self.last_mask)

  @dataclasses.dataclass(frozen=True)
  class Sampler:
    """How images are sampled.

    Attributes:
      temperature: divides the logits; 0 takes the most likely code.
      top_k: how many of the most likely codes to sample from; 0: all.
      guidance_scale: s in ℓ(no text) + s · (ℓ(text) − ℓ(no text)); 1 is no guidance.
      keep_rows: of an image that is given, the first rows of codes, which are kept (§3.3); 0: none.
    """

    temperature: float = 1.0
    top_k: int = 0
    guidance_scale: float = 1.0
    keep_rows: int = 0

    def __post_init__(self):
      Sampling(self.temperature, self.top_k)  # says what is wrong
      if self.keep_rows < 0:
        raise UserError(f"keep_rows must not be negative: {self.keep_rows}")

  @property
  def network(self) -> DALLENetwork:
    return DALLENetwork(
      layout=SequenceLayout(self.context_length, *self.tokenizer.grid, self.conv_size),
      masks=self.masks,
      vocab_size=self.vocab_size,
      num_codes=self.tokenizer.num_codes,
      width=self.width,
      num_heads=self.num_heads,
      mlp_dim=self.mlp_dim,
      remat=self.remat,
      unroll=self.unroll,
      dtype=self.dtype,
    )

  def inputs(self):
    return {"image": image_input(self.tokenizer.image_size), **text_inputs(self.context_length)}

  def init(self, rng):
    codes = jax.ShapeDtypeStruct((math.prod(self.tokenizer.grid),), jnp.int32)
    return apply.init(
      self.network, rng, {**self.inputs(), "codes": codes}, "text", "text_mask", "codes"
    )

  def loss(self, variables, batch, rng, *, step, train, frozen):
    """⅛ of the text's cross entropy and ⅞ of the image's, means over their tokens; `step` is not
    used.
    """
    del step, frozen
    codes = self._codes(variables, batch["image"])
    text_mask = batch["text_mask"]
    if train and self.text_dropout:
      kept = jax.random.bernoulli(rng, 1 - self.text_dropout, (len(text_mask), 1))
      text_mask = text_mask & kept
    words, cells = self.token_logits(variables, batch["text"], text_mask, codes)
    terms = {
      "text": cross_entropy(words, batch["text"][:, 1:], text_mask[:, 1:], self.text_weight),
      "image": cross_entropy(cells, codes, jnp.ones(codes.shape, bool), 1 - self.text_weight),
    }
    metrics = {"accuracy": (cells.argmax(-1) == codes).mean()}
    return terms, Aux(metrics=metrics, state=variables["state"])

  def accumulates(self):
    return ""

  def _codes(self, variables, image) -> Int[Array, "batch cells"]:
    codes = self.tokenizer.image_to_tokens(part(variables, "tokenizer"), image)
    return jax.lax.stop_gradient(rearrange(codes, "b r c -> b (r c)"))

  def token_logits(
    self,
    variables,
    text: Int[Array, "batch length"],
    text_mask: Bool[Array, "batch length"],
    codes: Int[Array, "batch cells"],
  ) -> tuple[Float[Array, "batch next vocab"], Float[Array, "batch cells codes"]]:
    """Logits of the text's tokens but the first, and of all codes."""
    return apply.infer(self.network, own(variables, "tokenizer"), text, text_mask, codes)

  def reconstruct(
    self, variables, image: Float[Array, "batch height width 3"]
  ) -> Float[Array, "batch height width 3"]:
    """The tokenizer's reconstruction: no sample can be expected to be better."""
    return self.tokenizer.reconstruct(part(variables, "tokenizer"), image)

  def sample_inputs(self):
    return text_inputs(self.context_length)

  def sample_images(
    self, variables, inputs, seeds: Int[Array, " batch"], sampler: Sampler
  ) -> Float[Array, "batch height width 3"]:
    """Samples images of `text` and `text_mask`; and of `image`, where the sampler keeps some of its
    rows.
    """
    codes = self.sample_tokens(variables, inputs, seeds, sampler)
    return self.tokenizer.tokens_to_image(part(variables, "tokenizer"), codes)

  def sample_tokens(
    self, variables, inputs, seeds: Int[Array, " batch"], sampler: Sampler
  ) -> Int[Array, "batch rows columns"]:
    """Codes of images, one after another; see `sample_images`.

    Raises:
      UserError: where more rows are to be kept than an image has, or none is given.
    """
    text, text_mask, network = inputs["text"], inputs["text_mask"], self.network
    call = functools.partial(apply.infer, network, own(variables, "tokenizer"))
    rows, columns = self.tokenizer.grid
    prefix = jnp.zeros((len(text), 0), jnp.int32)
    if sampler.keep_rows:
      if sampler.keep_rows >= rows or "image" not in inputs:
        raise UserError(
          f"keep_rows must be below {rows}, the rows of codes, and needs an image whose rows are kept"
        )
      prefix = self._codes(variables, inputs["image"])[:, : sampler.keep_rows * columns]
    guided = sampler.guidance_scale != 1.0
    both = lambda x: jnp.concatenate([x, x]) if guided else x

    def read(x, cache):
      x, cache = call(x, cache, method="decode")
      logits = call(x[:, -1], method="image_logits")
      if guided:
        with_text, without = jnp.split(logits, 2)
        logits = without + sampler.guidance_scale * (with_text - without)
      return logits, cache

    def step(state, codes, going):
      del going  # there is no stop among the codes
      cache, position = state
      x = call(both(codes[:, None]), position + 1, method="embed_codes")
      logits, cache = read(x, cache)
      return logits, (cache, position + 1)

    seen = jnp.concatenate([text_mask, jnp.zeros_like(text_mask)]) if guided else text_mask
    logits, cache = read(
      call(both(text), seen, both(prefix), method="embed"), network.empty_cache(len(both(text)))
    )
    sampling, first = Sampling(sampler.temperature, sampler.top_k), prefix.shape[1]
    nothing, stops = jnp.zeros((len(text), 0), bool), jnp.zeros(0, jnp.int32)
    sampled = sample_first(
      sampling, logits, (cache, jnp.int32(first)), jnp.full(len(text), first), nothing, seeds, stops
    )
    more = rows * columns - first - 1
    _, (codes, _) = sample_more(step, sampling, sampled, more, more, seeds, stops)
    return rearrange(
      jnp.concatenate([prefix, sampled.last[:, None], codes], axis=1), "b (r c) -> b r c", r=rows
    )
