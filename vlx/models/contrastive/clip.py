"""CLIP.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021. Here:
the two towers (§2.4; the image's is a ViT or a ResNet), the symmetric contrastive loss with its
learned, clipped temperature (§2.3, Figure 3), embeddings of images and texts, and their similarity.

Fields beyond the paper: `loss="sigmoid"` (SigLIP, Zhai et al., 2023), `similarity` (for the
ablation of the cosine), text towers without causal mask or pooled by the mean. Parameters and
initialisation follow the released code (openai/CLIP, model.py) with the presets below.
"""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vlx.core.system import Aux, Term, image_input, text_inputs
from vlx.losses import contrastive as losses
from vlx.models.layers import apply
from vlx.models.layers.transformer import Transformer
from vlx.models.vision.classifier import encode_places, subnetwork
from vlx.models.vision.modified_resnet import ModifiedResNet
from vlx.models.vision.vit import VisionTransformer
from vlx.ops.masks import Causal, KeyPadding, UpTo

MAX_SCALE = 100.0  # §2.5: "clipped to prevent scaling the logits by more than 100"


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def bounded(x: Float[Array, ""], most: float) -> Float[Array, ""]:
  """min(x, most), with a gradient above `most` too where descent leads back below it: a parameter
  there stands still, as one that is clamped after each step, and does not die.
  """
  return jnp.minimum(x, most)


def _bounded_forward(x, most):
  return bounded(x, most), x


def _bounded_backward(most, x, gradient):
  return (jnp.where((x >= most) & (gradient < 0), 0.0, gradient),)


bounded.defvjp(_bounded_forward, _bounded_backward)


# Table 19: blocks of the stages, width of the stem, image, embedding, text.
RESNETS = {
  "RN50": ((3, 4, 6, 3), 64, 224, 1024, 512),
  "RN101": ((3, 4, 23, 3), 64, 224, 512, 512),
  "RN50x4": ((4, 6, 10, 6), 80, 288, 640, 640),
  "RN50x16": ((6, 8, 18, 8), 96, 384, 768, 768),
  "RN50x64": ((3, 15, 36, 10), 128, 448, 1024, 1024),
}


def published_size(name: str) -> dict:
  """The model section of a published CLIP: "B/32", "B/16", "L/14", "L/14@336" (Table 20), or of
  `RESNETS`.
  """
  shared = dict(activation="quick_gelu", layer_norm_epsilon=1e-5)
  if name in RESNETS:
    stage_sizes, stem_width, image_size, embed_dim, text_width = RESNETS[name]
    image = dict(image_size=image_size, stage_sizes=stage_sizes, stem_width=stem_width)
  else:
    name, _, image_size = name.partition("@")
    width, depth, heads, embed_dim, text_width = {
      "B": (768, 12, 12, 512, 512),
      "L": (1024, 24, 16, 768, 768),
    }[name[0]]
    image = dict(
      image_size=int(image_size or 224),
      patch_size=int(name[2:]),
      width=width,
      depth=depth,
      num_heads=heads,
      mlp_dim=4 * width,
      patch_bias=False,
      pre_norm=True,
      embedding_std=width**-0.5,
      initialization="torch",  # `initialize_parameters` draws the text's layers anew, not these
      **shared,
    )
  return dict(
    image=image,
    text=dict(
      vocab_size=49408,
      context_length=77,
      width=text_width,
      depth=12,
      num_heads=text_width // 64,
      mlp_dim=4 * text_width,
      initialization="clip",
      **shared,
    ),
    embed_dim=embed_dim,
  )


class TextTransformer(nn.Module):
  """Token ids `[B, T]` and their mask → (pooled `[B, width]`, tokens `[B, T, width]`).

  Shorter texts than `context_length` are taken as they are; pooling is at the last real token
  (CLIP's end-of-text) or the mean over real tokens. Depth 0 is a bag of words: no positions either.
  """

  vocab_size: int
  context_length: int
  width: int
  depth: int
  num_heads: int
  mlp_dim: int
  causal: bool = True
  pool: str = "last"
  embedding_std: float = 0.02  # of tokens; 0 makes a token that training never meets say nothing
  # The ε of an RMS norm of each token's embedding, 0: none. Trained words then weigh alike, and one
  # that is still at zero stays there.
  token_norm: float = 0.0
  token_dropout: float = 0.0  # how often a token's embedding is dropped whole in training
  activation: str = "quick_gelu"
  layer_norm_epsilon: float = 1e-5
  initialization: str = "clip"
  head_dim: int = 0  # 0: width / num_heads
  qkv_bias: bool = True
  dropout: float = 0.0
  remat: bool = False
  unroll: int = 1
  dtype: str = "float32"

  @nn.compact
  def __call__(
    self,
    text: Int[Array, "batch length"],
    text_mask: Bool[Array, "batch length"],
    *,
    train: bool = False,
  ) -> tuple[Float[Array, "batch features"], Float[Array, "batch length features"]]:
    length = text.shape[1]
    if length > self.context_length:
      raise ValueError(f"texts of {length} tokens; this tower takes {self.context_length}")
    if self.pool not in ("last", "mean"):
      raise ValueError(f"pool is 'last' or 'mean', not {self.pool!r}")
    embed = nn.Embed(
      self.vocab_size,
      self.width,
      embedding_init=nn.initializers.normal(self.embedding_std),
      dtype=self.dtype,
      name="token_embedding",
    )
    x = embed(text)
    if self.token_norm:
      x = x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + self.token_norm)
    # The same for all of a token's features: the word is not there.
    x = nn.Dropout(self.token_dropout, broadcast_dims=(-1,), deterministic=not train)(x)
    if self.depth:
      positions = self.param(
        "position_embedding", nn.initializers.normal(0.01), (self.context_length, self.width)
      )
      x = x + positions[:length].astype(self.dtype)
    x = nn.Dropout(self.dropout, deterministic=not train)(x)
    # Under a causal mask no real token sees the padding, which stands at the end.
    mask = Causal() if self.causal else KeyPadding(text_mask)
    transformer = Transformer(
      depth=self.depth,
      num_heads=self.num_heads,
      mlp_dim=self.mlp_dim,
      activation=self.activation,
      dropout=self.dropout,
      layer_norm_epsilon=self.layer_norm_epsilon,
      initialization=self.initialization,
      head_dim=self.head_dim,
      qkv_bias=self.qkv_bias,
      remat=self.remat,
      unroll=self.unroll,
      dtype=self.dtype,
      name="transformer",
    )
    norm = nn.LayerNorm(self.layer_norm_epsilon, dtype=self.dtype, name="final_norm")
    if self.pool == "last":
      last = text_mask.sum(axis=1) - 1
      last_mask = UpTo(last[:, None]) if self.causal else mask
      pooled, x = transformer.pooled(x, last, mask, last_mask, train=train)
      return norm(pooled), norm(x)
    x = transformer(x, mask, train=train)
    # The mean before the norm: a token can weigh less than another.
    weight = text_mask[..., None].astype(x.dtype)
    return norm((x * weight).sum(axis=1) / weight.sum(axis=1)), norm(x)


class CLIPNetwork(nn.Module):
  """Both towers, their projections to one space, and the temperature."""

  image: VisionTransformer | ModifiedResNet
  text: TextTransformer
  embed_dim: int
  init_scale: float
  max_scale: float
  init_bias: float | None

  def setup(self):
    projection = lambda width, bias=False: nn.Dense(
      self.embed_dim,
      use_bias=bias,
      dtype=self.image.dtype,
      kernel_init=nn.initializers.normal(width**-0.5),
    )
    self.image_projection = projection(
      self.image.width, bias=isinstance(self.image, ModifiedResNet)
    )
    self.text_projection = projection(self.text.width)
    constant = nn.initializers.constant
    self.logit_scale = self.param("logit_scale", constant(math.log(self.init_scale)), ())
    if self.init_bias is not None:
      self.logit_bias = self.param("logit_bias", constant(self.init_bias), ())

  def embed_image(
    self, image: Float[Array, "batch height width 3"], *, train: bool = False
  ) -> Float[Array, "batch dim"]:
    return self.image_projection(self.image(image, train=train)[0])

  def embed_text(
    self,
    text: Int[Array, "batch length"],
    text_mask: Bool[Array, "batch length"],
    *,
    train: bool = False,
  ) -> Float[Array, "batch dim"]:
    return self.text_projection(self.text(text, text_mask, train=train)[0])

  def scale(self) -> Float[Array, ""]:
    return jnp.exp(bounded(self.logit_scale, math.log(self.max_scale)))

  def bias(self) -> Float[Array, ""]:
    return self.logit_bias

  def __call__(
    self,
    image: Float[Array, "images height width 3"],
    text: Int[Array, "texts length"],
    text_mask: Bool[Array, "texts length"],
    *,
    train: bool = False,
  ) -> tuple[Float[Array, "images dim"], Float[Array, "texts dim"]]:
    return self.embed_image(image, train=train), self.embed_text(text, text_mask, train=train)


@dataclasses.dataclass(frozen=True)
class CLIP:
  """The system. Batches hold `image`, `text` and `text_mask`, row i of each belonging together."""

  image: VisionTransformer | ModifiedResNet
  text: TextTransformer
  embed_dim: int
  loss_type: str = "softmax"  # or "sigmoid" (SigLIP)
  similarity_type: str = "cosine"  # or "inner_product", "negative_l2"
  init_scale: float = 1 / 0.07  # §2.5; of the softmax loss alone
  sigmoid_init_scale: float = 10.0  # SigLIP's, of the sigmoid loss alone
  init_bias: float = -10.0  # the same

  def __post_init__(self):
    if self.loss_type not in ("softmax", "sigmoid"):
      raise ValueError(f"loss_type is 'softmax' or 'sigmoid', not {self.loss_type!r}")
    if self.similarity_type not in losses.SIMILARITIES:
      raise ValueError(
        f"similarity_type is one of {', '.join(losses.SIMILARITIES)}, not {self.similarity_type!r}"
      )

  @property
  def network(self) -> CLIPNetwork:
    sigmoid = self.loss_type == "sigmoid"
    return CLIPNetwork(
      image=self.image,
      text=self.text,
      embed_dim=self.embed_dim,
      init_scale=self.sigmoid_init_scale if sigmoid else self.init_scale,
      # SigLIP's has no bound (big_vision, trainers/proj/image_text/siglip.py).
      max_scale=math.inf if sigmoid else MAX_SCALE,
      init_bias=self.init_bias if sigmoid else None,
    )

  @property
  def text_length(self) -> int:
    return self.text.context_length

  @property
  def vocab_size(self) -> int:
    return self.text.vocab_size

  def inputs(self):
    return {"image": image_input(self.image.image_size), **text_inputs(self.text_length)}

  def init(self, rng):
    return apply.init(self.network, rng, self.inputs(), "image", "text", "text_mask")

  def loss(self, variables, batch, rng, *, step, train, frozen):
    """Contrastive loss over the global batch; `step` is not used. A ResNet's batch statistics
    are `state`.
    """
    del step
    (image, text), state = apply.forward(
      self.network,
      variables,
      batch["image"],
      batch["text"],
      batch["text_mask"],
      rng=rng,
      train=train,
      frozen=frozen,
    )
    scale = apply.infer(self.network, variables, method="scale")
    similarity = losses.SIMILARITIES[self.similarity_type]
    if self.loss_type == "sigmoid":
      bias = apply.infer(self.network, variables, method="bias")
      loss = losses.sigmoid_contrastive(image, text, scale, bias, similarity)
    else:
      loss = losses.info_nce(image, text, scale, similarity)
    return {"contrastive": Term(loss * len(image), len(image))}, Aux(
      metrics={"scale": scale}, state=state
    )

  def accumulates(self):
    return "a pair's negatives are the other pairs of the batch"

  def embed_image(
    self, variables, image: Float[Array, "batch height width 3"]
  ) -> Float[Array, "batch dim"]:
    """Not normalised: `similarity` does what its kind asks for."""
    return apply.infer(self.network, variables, image, method="embed_image")

  def embed_text(
    self, variables, text: Int[Array, "batch length"], text_mask: Bool[Array, "batch length"]
  ) -> Float[Array, "batch dim"]:
    """Not normalised."""
    return apply.infer(self.network, variables, text, text_mask, method="embed_text")

  def encode_image(
    self, variables, image: Float[Array, "batch height width 3"], *, layer: int = -1
  ) -> Float[Array, "batch places features"]:
    """The image tower's tokens, the class token's first, or map, before the projection; or those
    of a layer.
    """
    return encode_places(self.image, variables, "image", image, layer)

  def encode_text(
    self, variables, text: Int[Array, "batch length"], text_mask: Bool[Array, "batch length"]
  ) -> Float[Array, "batch length features"]:
    """The text tower's tokens, before the projection."""
    return self.text.apply(subnetwork(variables, "text"), text, text_mask)[1]

  def similarity(
    self, image: Float[Array, "images dim"], text: Float[Array, "texts dim"]
  ) -> Float[Array, "images texts"]:
    """Scores of all pairs: what the loss ranks by, without the temperature."""
    return losses.SIMILARITIES[self.similarity_type](image, text)

  def attention_maps(self, variables, inputs) -> Float[Array, "batch rows columns"]:
    """Attention over `image`: rollout of a ViT's attention, or a ResNet's attention pool."""
    return self.image.attention_map(subnetwork(variables, "image"), inputs["image"])


@dataclasses.dataclass(frozen=True)
class CLIPTextTower:
  """The text tower with its projection: what a pipeline that reads no image has of a CLIP."""

  text: TextTransformer
  embed_dim: int

  @property
  def network(self) -> "_Projected":
    return _Projected(self.text, self.embed_dim)

  @property
  def text_length(self) -> int:
    return self.text.context_length

  @property
  def vocab_size(self) -> int:
    return self.text.vocab_size

  def init(self, rng):
    return apply.init(self.network, rng, text_inputs(self.text_length), "text", "text_mask")

  def embed_text(
    self, variables, text: Int[Array, "batch length"], text_mask: Bool[Array, "batch length"]
  ) -> Float[Array, "batch dim"]:
    """Not normalised."""
    return apply.infer(self.network, variables, text, text_mask)

  def encode_text(
    self, variables, text: Int[Array, "batch length"], text_mask: Bool[Array, "batch length"]
  ) -> Float[Array, "batch length features"]:
    """The tokens, after the last norm, before the projection."""
    return self.text.apply(subnetwork(variables, "text"), text, text_mask)[1]


class _Projected(nn.Module):
  text: TextTransformer
  embed_dim: int

  @nn.compact
  def __call__(
    self, text: Int[Array, "batch length"], text_mask: Bool[Array, "batch length"]
  ) -> Float[Array, "batch dim"]:
    pooled, _ = self.text(text, text_mask)
    return nn.Dense(self.embed_dim, use_bias=False, name="text_projection")(pooled)


@dataclasses.dataclass(frozen=True)
class CLIPTextEncoder:
  """The text tower by itself: Stable Diffusion's, or one that learns along with what it is a part of.

  From a CLIP: `config.init = (dict(source="runs/clip", take="text", put="text_encoder/text"),)`.
  """

  text: TextTransformer

  @property
  def text_length(self) -> int:
    return self.text.context_length

  @property
  def vocab_size(self) -> int:
    return self.text.vocab_size

  def init(self, rng):
    variables = apply.init(self.text, rng, text_inputs(self.text_length), "text", "text_mask")
    return {"params": {"text": variables["params"]}, "state": {}}

  def encode_text(
    self, variables, text: Int[Array, "batch length"], text_mask: Bool[Array, "batch length"]
  ) -> Float[Array, "batch length features"]:
    """The tokens, after the last norm."""
    return self.text.apply(subnetwork(variables, "text"), text, text_mask)[1]
