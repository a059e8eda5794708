"""unCLIP's autoregressive prior: the CLIP embedding of an image, number by number, for a text.

Ramesh et al., "Hierarchical Text-Conditional Image Generation with CLIP Latents" (DALL-E 2), 2022, §2.2: embeddings are
turned to the principal axes of those of training, by falling eigenvalue; of the first of them each number is one of 1,024
buckets, which a causal transformer says one after another. Before them stand the text, its CLIP embedding, and how
near image and text are, their product, one of some buckets too: sampling asks for one of the nearer half.

The CLIP is a part, at rest; axes, buckets and products are measured of the first batches. Layers are DALL-E's
(`vlx.models.generation.dalle`), for the paper says of them but their sizes. That each bucket is as wide as the next, and each
product as frequent, is a choice of this code.
"""

import dataclasses
import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vlx.core import system as systems
from vlx.core.system import Aux, image_input, own, part, text_inputs
from vlx.inference.decoding import sample_first, sample_more
from vlx.inference.sampling import Sampling
from vlx.losses.sequence import cross_entropy
from vlx.models.generation.dalle import Block, SequenceLayout
from vlx.models.generation.unclip_prior import (
  Embeddings,
  ReadsText,
  draws,
  nearest,
  read_text,
  unit,
)
from vlx.models.layers import apply
from vlx.models.layers.cache import Cache


class Measured(NamedTuple):
  """What the first batches say of embeddings `[N, D]`: a state, by these names.

  Attributes:
    mean: of unit vectors.
    axes: `[D, n]`, orthonormal, by falling eigenvalue.
    low: of each axis's numbers.
    high: see `low`.
    products: `[products − 1]`, between the buckets of z_i · z_t.
    kept: the share of the variance on these axes.
  """

  mean: Float[Array, " dim"]
  axes: Float[Array, "dim numbers"]
  low: Float[Array, " numbers"]
  high: Float[Array, " numbers"]
  products: Float[Array, " edges"]
  kept: Float[Array, ""]


def measure(
  image: Float[Array, "batch dim"], text: Float[Array, "batch dim"], numbers: int, products: int
) -> Measured:
  """Of unit vectors."""
  mean = image.mean(axis=0)
  values, vectors = jnp.linalg.eigh((image - mean).T @ (image - mean) / len(image))
  axes = vectors[:, ::-1][:, :numbers]
  turned = (image - mean) @ axes
  shares = jnp.arange(1, products) / products
  return Measured(
    mean,
    axes,
    turned.min(axis=0),
    turned.max(axis=0),
    jnp.quantile((image * text).sum(axis=-1), shares),
    values[::-1][:numbers].sum() / values.sum(),
  )


def to_codes(found: Measured, z: Float[Array, "batch dim"], buckets: int) -> Int[Array, "batch n"]:
  """The buckets of unit vectors."""
  share = ((z - found.mean) @ found.axes - found.low) / (found.high - found.low)
  return jnp.clip(jnp.floor(share * buckets), 0, buckets - 1).astype(jnp.int32)


def from_codes(
  found: Measured, codes: Int[Array, "batch n"], buckets: int
) -> Float[Array, "batch dim"]:
  """By the middles of buckets."""
  turned = found.low + (codes + 0.5) / buckets * (found.high - found.low)
  return found.mean + turned @ found.axes.T


class ARPriorNetwork(nn.Module):
  """(text, its embedding, a product, buckets) → logits of each bucket.

  Attributes:
    numbers: how many an embedding has here.
    buckets: of each.
    products: buckets of products.
    text_length: tokens of a text.
    width: of the transformer.
    depth: of it.
    num_heads: of it.
    mlp_dim: of it.
    remat: whether layers are computed again for gradients.
    unroll: layers that are one turn of the loop.
    dtype: of the computation.
  """

  numbers: int
  buckets: int
  products: int
  text_length: int
  width: int
  depth: int
  num_heads: int
  mlp_dim: int
  remat: bool = False
  unroll: int = 1
  dtype: str = "float32"

  @nn.nowrap
  def empty_cache(self, batch: int) -> Cache:
    length = self.text_length + 1 + self.numbers
    head_dim = self.width // self.num_heads
    return Cache.empty(self.depth, batch, length, self.num_heads, head_dim, self.dtype)

  def setup(self):
    normal = nn.initializers.normal(0.02)
    vectors = lambda name, *shape: self.param(name, normal, (*shape, self.width))
    self.tokens, self.text = nn.Dense(self.width), nn.Dense(self.width)
    self.padding = vectors("padding", self.text_length)
    self.product = nn.Embed(self.products, self.width, embedding_init=normal)
    # A bucket is another thing on each axis.
    self.bucket = nn.Embed(self.buckets, self.width, embedding_init=normal)
    self.position = vectors("position", self.text_length + 1 + self.numbers)
    block = nn.remat(Block, prevent_cse=False) if self.remat else Block
    layout = SequenceLayout(self.text_length + 2, 1, self.numbers, 1)
    self.blocks = nn.scan(
      block,
      variable_axes={"params": 0},
      split_rngs={"params": True},
      in_axes=0,
      length=self.depth,
      unroll=self.unroll,
    )(self.num_heads, self.mlp_dim, layout, ("full",), 0.02 * (2 * self.depth) ** -0.5, self.dtype)
    self.final_norm = nn.LayerNorm(1e-5)
    self.head = nn.Dense(self.buckets, kernel_init=normal)

  def embed(
    self,
    text: Embeddings,
    tokens: Float[Array, "batch length features"],
    mask: Bool[Array, "batch length"],
    product: Int[Array, " batch"],
    codes: Int[Array, "batch count"],
  ) -> Float[Array, "batch sequence width"]:
    """The text, its embedding, the product, `count` buckets."""
    words = jnp.where(mask[..., None], self.tokens(tokens), self.padding[: tokens.shape[1]])
    others = jnp.stack([self.text(text), self.product(product)], axis=1)
    x = jnp.concatenate([words, others], axis=1) + self.position[: words.shape[1] + 2]
    return jnp.concatenate([x, self.embed_codes(codes, 0)], axis=1)

  def embed_codes(
    self, codes: Int[Array, "batch count"], first: int | Int[Array, ""]
  ) -> Float[Array, "batch count width"]:
    """Buckets of the axes from `first` on, as inputs."""
    at = self.text_length + 2 + first + jnp.arange(codes.shape[1])
    return self.bucket(codes) + self.position[at]

  def decode(
    self, x: Float[Array, "batch sequence width"], cache: Cache | None = None
  ) -> tuple[Float[Array, "batch sequence width"], Cache | None]:
    """A whole sequence, or what follows that in a cache → normed output, f32."""
    carry = (x.astype(self.dtype), cache)
    kinds = jnp.zeros(self.depth, jnp.int32)
    (x, cache), _ = self.blocks(carry, jnp.arange(self.depth), kinds)
    if cache is not None:
      cache = cache.advance(jnp.ones(x.shape[:2], bool))
    return self.final_norm(x.astype(jnp.float32)), cache

  def logits(self, x: Float[Array, "*axes width"]) -> Float[Array, "*axes buckets"]:
    return self.head(x)

  def __call__(
    self,
    text: Embeddings,
    tokens: Float[Array, "batch length features"],
    mask: Bool[Array, "batch length"],
    product: Int[Array, " batch"],
    codes: Int[Array, "batch numbers"],
  ) -> Float[Array, "batch numbers buckets"]:
    x, _ = self.decode(self.embed(text, tokens, mask, product, codes[:, :-1]))
    return self.head(x[:, -self.numbers :])


@dataclasses.dataclass(frozen=True)
class ARPriorSampler:
  """How embeddings are sampled.

  Attributes:
    temperature: divides the logits; 0 takes the most likely bucket.
    top_k: how many of the most likely buckets to sample from; 0: all.
    guidance_scale: s in ℓ(no text) + s · (ℓ(text) − ℓ(no text)); 1 is no guidance.
    draws: of which the one nearest to the text's embedding is kept.
  """

  temperature: float = 1.0
  top_k: int = 0
  guidance_scale: float = 1.0
  draws: int = 1

  def __post_init__(self):
    Sampling(self.temperature, self.top_k)  # says what is wrong


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoregressivePrior:
  """The system. Batches hold `image`, `text` and `text_mask`.

  Attributes:
    clip: a part, at rest.
    network: what says the buckets.
    image_size: that the CLIP takes.
    measured_by: of how many batches the axes are; more images than an embedding has numbers.
    condition_dropout: how often training leaves the text out.
  """

  clip: ReadsText
  network: ARPriorNetwork
  image_size: int
  measured_by: int = 50
  condition_dropout: float = 0.1

  Sampler = ARPriorSampler

  def inputs(self):
    return {"image": image_input(self.image_size), **self.sample_inputs()}

  def sample_inputs(self):
    return text_inputs(self.network.text_length)

  def init(self, rng):
    shape, network = jax.ShapeDtypeStruct, self.network
    image, (text, tokens, mask) = jax.eval_shape(self._example, rng)
    inputs = dict(
      text=shape(text.shape[1:], text.dtype),
      tokens=shape(tokens.shape[1:], tokens.dtype),
      mask=shape(mask.shape[1:], mask.dtype),
      product=shape((), jnp.int32),
      codes=shape((network.numbers,), jnp.int32),
    )
    made = apply.init(network, rng, inputs, *inputs)
    dim, n = image.shape[-1], network.numbers
    nothing = Measured(
      jnp.zeros(dim),
      jnp.eye(dim, n),
      -jnp.ones(n),
      jnp.ones(n),
      jnp.linspace(-1, 1, network.products + 1)[1:-1],
      jnp.ones(()),
    )
    return {**made, "state": {**made["state"], "measured": nothing._asdict()}}

  def _example(self, rng):
    inputs = {n: jnp.zeros((1, *s.shape), s.dtype) for n, s in self.inputs().items()}
    variables = {k: {"clip": v} for k, v in systems.init(self.clip, rng).items()}
    return self._image(variables, inputs["image"]), self._text(variables, inputs, True)

  def _image(self, variables, image) -> Embeddings:
    return unit(self.clip.embed_image(part(variables, "clip"), image))

  def _text(self, variables, inputs, given: jax.Array | bool):
    return read_text(self.clip, part(variables, "clip"), inputs, given, scale=1.0)

  def prepare(self, variables, batches, rng):
    """Measures axes, buckets and products."""
    del rng
    embed = jax.jit(
      lambda b: (self._image(variables, b["image"]), self._text(variables, b, True)[0])
    )
    found = [embed(batches[i]) for i in range(self.measured_by)]
    image, text = (jnp.concatenate(x) for x in zip(*found))
    measured = measure(image, text, self.network.numbers, self.network.products)
    return {**variables, "state": {**variables["state"], "measured": measured._asdict()}}

  def _own(self, variables):
    mine = own(variables, "clip")
    return {**mine, "state": {k: v for k, v in mine["state"].items() if k != "measured"}}

  def loss(self, variables, batch, rng, *, step, train, frozen):
    """−log p of each bucket."""
    del step, frozen
    measured = Measured(**variables["state"]["measured"])
    z = self._image(variables, batch["image"])
    given = jax.random.bernoulli(rng, 1 - self.condition_dropout, (len(z),)) if train else True
    text, tokens, mask = self._text(variables, batch, given)
    whole, _, _ = self._text(variables, batch, True)
    products = jnp.searchsorted(measured.products, (z * whole).sum(axis=-1))
    codes = jax.lax.stop_gradient(to_codes(measured, z, self.network.buckets))
    mine = self._own(variables)
    logits = apply.infer(self.network, mine, text, tokens, mask, products, codes)
    terms = {"bucket": cross_entropy(logits, codes, jnp.ones(codes.shape, bool))}
    return terms, Aux({"variance_kept": measured.kept}, variables["state"])

  def accumulates(self):
    return ""

  def sample_image_embeddings(
    self, variables, inputs, seeds: Int[Array, " batch"], sampler: ARPriorSampler
  ) -> Float[Array, "batch dim"]:
    """Of `text` and `text_mask`; unit vectors nearly."""
    measured, network = Measured(**variables["state"]["measured"]), self.network
    rows, drawn = draws(seeds, sampler.draws)
    repeated = {name: inputs[name][rows] for name in ("text", "text_mask")}
    told = self._text(variables, repeated, True)
    text = told[0]
    # One of the nearer half of the products.
    half = network.products // 2
    nearer = jax.vmap(
      lambda seed: jax.random.randint(
        jax.random.fold_in(jax.random.key(seed), network.numbers), (), half, network.products
      )
    )(drawn)
    guided = sampler.guidance_scale != 1.0
    both = lambda x: jnp.concatenate([x, x]) if guided else x
    if guided:
      nothing = self._text(variables, repeated, False)
      told = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), told, nothing)
    call = functools.partial(apply.infer, network, self._own(variables))

    def read(x, cache):
      x, cache = call(x, cache, method="decode")
      logits = call(x[:, -1], method="logits")
      if guided:
        given, without = jnp.split(logits, 2)
        logits = without + sampler.guidance_scale * (given - without)
      return logits, cache

    def step(state, codes, going):
      del going  # nothing ends before the last number
      cache, position = state
      logits, cache = read(call(both(codes[:, None]), position, method="embed_codes"), cache)
      return logits, (cache, position + 1)

    count = len(drawn)
    empty = jnp.zeros((len(both(drawn)), 0), jnp.int32)
    x = call(*told, both(nearer), empty, method="embed")
    logits, cache = read(x, network.empty_cache(len(empty)))
    sampling = Sampling(sampler.temperature, sampler.top_k)
    unseen, stops = jnp.zeros((count, 0), bool), jnp.zeros(0, jnp.int32)
    first = sample_first(
      sampling, logits, (cache, jnp.int32(0)), jnp.zeros(count, jnp.int32), unseen, drawn, stops
    )
    more = network.numbers - 1
    _, (codes, _) = sample_more(step, sampling, first, more, more, drawn, stops)
    codes = jnp.concatenate([first.last[:, None], codes], axis=1)
    return nearest(from_codes(measured, codes, network.buckets), text, sampler.draws)
