"""unCLIP's diffusion prior: the CLIP embedding of an image for a text.

Ramesh et al., "Hierarchical Text-Conditional Image Generation with CLIP Latents" (DALL-E 2), 2022, §2.2: a causal
transformer over the encoded text, the text's CLIP embedding, the step, the noised embedding of the image, and a query,
whose output says the embedding without noise. Of two draws the one that is nearer to the text's embedding is kept. The
text is left out at times, for guidance.

Embeddings are unit vectors times 17.2 (dalle2's paper, §2.2; numbers then spread as pixels do), or, as Karlo has it
(kakaobrain, 2022), not normalised and brought to mean 0 and deviation 1, number by number. The CLIP is a part, at rest.
"""

import dataclasses
from typing import Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from vlx.core import system as systems
from vlx.core.capabilities import EmbedsText, EncodesText
from vlx.core.system import Aux, image_input, own, part, text_inputs
from vlx.inference import diffusion, guidance, samplers
from vlx.inference.diffusion import Process
from vlx.inference.samplers import Sampler
from vlx.losses import diffusion as losses
from vlx.models.layers import apply
from vlx.models.layers.transformer import Transformer
from vlx.models.layers.unet import sinusoids
from vlx.ops.masks import Causal, KeyPadding

Embeddings = Float[Array, "batch dim"]


@runtime_checkable
class ReadsText(EmbedsText, EncodesText, Protocol):
  """A CLIP; to learn, it embeds images too, to sample, its text tower is enough."""


class PriorNetwork(nn.Module):
  """(noised embedding, its step, a text) → what is said of it.

  Attributes:
    dim: of the embeddings.
    text_length: tokens of a text.
    width: of the transformer.
    depth: see `vlx.models.layers.transformer.Transformer`, as the rest.
    num_heads: see there.
    mlp_dim: see there.
    head_dim: see there.
    dropout: see there.
    remat: see there.
    unroll: see there.
    dtype: see there.
  """

  dim: int
  text_length: int
  width: int
  depth: int
  num_heads: int
  mlp_dim: int
  head_dim: int = 0
  dropout: float = 0.0
  remat: bool = False
  unroll: int = 1
  dtype: str = "float32"

  @nn.compact
  def __call__(
    self,
    x: Embeddings,
    t: Float[Array, " batch"] | Int[Array, " batch"],
    text: Embeddings,
    tokens: Float[Array, "batch length features"],
    mask: Bool[Array, "batch length"],
    *,
    train: bool = False,
  ) -> Embeddings:
    dense = lambda name, features=self.width: nn.Dense(features, dtype=self.dtype, name=name)
    normal = nn.initializers.normal(0.02)
    waves = sinusoids(t.astype(jnp.float32), self.width, cos_first=True, shift=0)
    step = dense("time2")(nn.silu(dense("time1")(waves)))
    query = self.param("query", normal, (self.width,)).astype(step.dtype)
    others = [dense("text")(text), step, dense("in")(x), jnp.broadcast_to(query, step.shape)]
    sequence = jnp.concatenate([dense("tokens")(tokens), jnp.stack(others, axis=1)], axis=1)
    positions = self.param("position_embedding", normal, (self.text_length + 4, self.width))
    # A shorter text stands at the first positions, what follows it always at the last.
    length = tokens.shape[1]
    positions = jnp.concatenate([positions[:length], positions[self.text_length :]])
    seen = jnp.concatenate([mask, jnp.ones((len(mask), 4), bool)], axis=1)
    transformer = Transformer(
      depth=self.depth,
      num_heads=self.num_heads,
      mlp_dim=self.mlp_dim,
      head_dim=self.head_dim,
      activation="gelu",
      dropout=self.dropout,
      layer_norm_epsilon=1e-5,
      remat=self.remat,
      unroll=self.unroll,
      dtype=self.dtype,
      name="transformer",
    )
    last = jnp.full(len(x), length + 3)
    h, _ = transformer.pooled(
      sequence + positions.astype(sequence.dtype),
      last,
      Causal() & KeyPadding(seen),
      KeyPadding(seen),
      train=train,
    )
    h = nn.LayerNorm(1e-5, dtype=self.dtype, name="final_norm")(h)
    return dense("out", self.dim)(h).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class PriorSampler(Sampler):
  """Of embeddings.

  Attributes:
    draws: of which the one nearest to the text's embedding, by their product, is kept.
  """

  num_steps: int = 64
  method: str = "ancestral"
  draws: int = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffusionPrior:
  """The system. Batches hold `image`, `text` and `text_mask`.

  Attributes:
    clip: a part, at rest.
    network: what says the embedding.
    image_size: that the CLIP takes.
    process: the diffusion process, and what the network says.
    scale: of unit vectors; 0: embeddings as they are, standardised by those of the first batches.
    standardised_by: how many batches these are.
    no_text: ids of a text that stands for none; (): its embedding is 0, and no token is seen.
    condition_dropout: how often training leaves the text out.
  """

  clip: ReadsText
  network: PriorNetwork
  image_size: int
  process: Process = Process("cosine", prediction="x0")
  scale: float = 17.2
  standardised_by: int = 20
  no_text: tuple[int, ...] = ()
  condition_dropout: float = 0.1

  Sampler = PriorSampler

  def __post_init__(self):
    if self.process.learned_variance:
      raise ValueError("a prior's variances are not learned")
    if len(self.no_text) > self.network.text_length:
      raise ValueError(
        f"no_text has {len(self.no_text)} ids, and network.text_length is {self.network.text_length}"
      )

  def inputs(self):
    return {"image": image_input(self.image_size), **self.sample_inputs()}

  def sample_inputs(self):
    return text_inputs(self.network.text_length)

  def init(self, rng):
    shape, dim = jax.ShapeDtypeStruct, self.network.dim
    text, tokens, mask = jax.eval_shape(self._text_example, rng)
    inputs = {
      "x": shape((dim,), jnp.float32),
      "t": shape((), jnp.float32),
      **{
        name: shape(x.shape[1:], x.dtype)
        for name, x in dict(text=text, tokens=tokens, mask=mask).items()
      },
    }
    made = apply.init(self.network, rng, inputs, *inputs)
    if self.scale:
      return made
    standard = {"mean": jnp.zeros(dim), "deviation": jnp.ones(dim)}
    return {**made, "state": {**made["state"], "embeddings": standard}}

  def _text_example(self, rng):
    inputs = {n: jnp.zeros((1, *s.shape), s.dtype) for n, s in self.sample_inputs().items()}
    variables = systems.init(self.clip, rng)
    return self._text({kind: {"clip": v} for kind, v in variables.items()}, inputs, True)

  def prepare(self, variables, batches, rng):
    """Measures the embeddings' mean and deviation, where there is no scale."""
    del rng
    if self.scale:
      return variables
    clip = part(variables, "clip")
    embed = jax.jit(lambda image: self.clip.embed_image(clip, image))
    z = jnp.concatenate([embed(batches[i]["image"]) for i in range(self.standardised_by)])
    standard = {"mean": z.mean(axis=0), "deviation": z.std(axis=0)}
    return {**variables, "state": {**variables["state"], "embeddings": standard}}

  def _x0(self, variables, image) -> Embeddings:
    """What is noised."""
    z = self.clip.embed_image(part(variables, "clip"), image)
    if self.scale:
      return self.scale * unit(z)
    standard = variables["state"]["embeddings"]
    return (z - standard["mean"]) / standard["deviation"]

  def _embedding(self, variables, x0: Embeddings) -> Embeddings:
    if self.scale:
      return x0 / self.scale
    standard = variables["state"]["embeddings"]
    return x0 * standard["deviation"] + standard["mean"]

  def _text(self, variables, inputs, given: jax.Array | bool):
    clip = part(variables, "clip")
    return read_text(self.clip, clip, inputs, given, scale=self.scale, no_text=self.no_text)

  def loss(self, variables, batch, rng, *, step, train, frozen):
    """The mean square of the error at a step of each row."""
    del step
    keys = jax.random.split(rng, 4)
    x0 = jax.lax.stop_gradient(self._x0(variables, batch["image"]))
    t = jax.random.randint(keys[0], (len(x0),), 0, self.process.timesteps)
    eps = jax.random.normal(keys[1], x0.shape)
    given = jax.random.bernoulli(keys[2], 1 - self.condition_dropout, (len(x0),)) if train else True
    x0, eps = _as_images(x0), _as_images(eps)
    x = diffusion.add_noise(x0, eps, self.process.level(t))
    output, state = apply.forward(
      self.network,
      self._own(variables),
      _as_vectors(x),
      t,
      *self._text(variables, batch, given),
      rng=keys[3],
      train=train,
      frozen=frozen,
    )
    weights = losses.weights(self.process, "simple")
    error = losses.squared_error(self.process, _as_images(output), x0, eps, t, weights)
    return {"error": error}, Aux({}, {**variables["state"], **state})

  def accumulates(self):
    return ""

  def _own(self, variables):
    mine = own(variables, "clip")
    return {**mine, "state": {k: v for k, v in mine["state"].items() if k != "embeddings"}}

  def sample_image_embeddings(
    self, variables, inputs, seeds: Int[Array, " batch"], sampler: PriorSampler
  ) -> Float[Array, "batch dim"]:
    """Of `text` and `text_mask`; unit vectors nearly, where there is a scale."""
    mine, (rows, drawn) = self._own(variables), draws(seeds, sampler.draws)
    repeated = lambda tree: jax.tree.map(lambda x: x[rows], tree)
    condition = repeated(self._text(variables, inputs, True))
    nothing = condition
    if sampler.guidance_scale != 1:
      nothing = repeated(self._text(variables, inputs, False))
    network = lambda x, t, text: _as_images(
      apply.infer(self.network, mine, _as_vectors(x), t, *text)
    )
    guided = guidance.classifier_free(
      network, self.process, condition, nothing, sampler.guidance_scale, sampler.guidance_rescale
    )
    x0, _ = samplers.sample(
      lambda x, t: network(x, t, condition),
      guided,
      self.process,
      sampler,
      drawn,
      (1, 1, self.network.dim),
    )
    return nearest(self._embedding(variables, _as_vectors(x0)), condition[0], sampler.draws)


def read_text(
  clip: ReadsText,
  variables,
  inputs,
  given: jax.Array | bool,
  *,
  scale: float,
  no_text: tuple[int, ...] = (),
) -> tuple[Embeddings, Float[Array, "batch length features"], Bool[Array, "batch length"]]:
  """(embedding, tokens, their mask) of texts where they are `given`, and of none elsewhere; an empty text is none.

  Args:
    clip: that reads them.
    variables: its own.
    inputs: `text` and `text_mask`.
    given: in which rows.
    scale: of embeddings of unit length; 0: they are as they come.
    no_text: ids of a text that stands for none; (): its embedding is 0, and no token is seen.
  """
  text, mask = inputs["text"], inputs["text_mask"]
  rows = (given & mask.any(axis=1))[:, None]
  if no_text:
    empty = np.zeros(text.shape[1], np.int32)
    empty[: len(no_text)] = no_text
    text = jnp.where(rows, text, empty)
    mask = jnp.where(rows, mask, np.arange(text.shape[1]) < len(no_text))
  embedding = clip.embed_text(variables, text, mask)
  tokens = clip.encode_text(variables, text, mask)
  embedding = scale * unit(embedding) if scale else embedding
  if not no_text:
    embedding, mask = jnp.where(rows, embedding, 0.0), mask & rows
  return embedding, tokens, mask


def draws(
  seeds: Int[Array, " batch"], count: int
) -> tuple[Int[Array, " draws"], Int[Array, " draws"]]:
  """(the row of each draw, its seed), `count` of each seed one after another."""
  rows = jnp.repeat(jnp.arange(len(seeds)), count)
  return rows, seeds[rows] * count + jnp.tile(jnp.arange(count), len(seeds))


def nearest(
  found: Float[Array, "draws dim"], text: Float[Array, "draws dim"], count: int
) -> Float[Array, "batch dim"]:
  """Of each `count` draws the one whose product with the text's embedding is the largest."""
  products = rearrange((found * text).sum(axis=-1), "(b n) -> b n", n=count)
  best = products.argmax(axis=1)[:, None, None]
  choices = rearrange(found, "(b n) d -> b n d", n=count)
  return jnp.take_along_axis(choices, best, axis=1)[:, 0]


def unit(x: Embeddings) -> Embeddings:
  return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def _as_images(x: Embeddings) -> Float[Array, "batch 1 1 dim"]:
  """Embeddings are images of one pixel to what knows of diffusion."""
  return rearrange(x, "b d -> b 1 1 d")


def _as_vectors(x: Float[Array, "batch 1 1 dim"]) -> Embeddings:
  return rearrange(x, "b 1 1 d -> b d")
