"""Vision Transformer.

Dosovitskiy et al., "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale",
2021. Here: the image tower (§3.1) in its published sizes, resampling of positions for other
resolutions (§3.2), attention rollout (§4.5, after Abnar & Zuidema, 2020), and the classifier as a
system. The pretraining head's extra tanh layer is the field `representation_size`.

Departures, each a field and off by default: mean pooling in place of the class token (§D.3 finds
them equal), a convolutional stem in place of the patch embedding (Xiao et al., 2021, "Early
Convolutions Help Transformers See Better"), CLIP's pre-norm and its patch embedding without bias.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange, reduce
from jaxtyping import Array, Float

from vlx.core.system import image_input
from vlx.models.layers import apply
from vlx.models.layers.position import resample_positions
from vlx.models.layers.transformer import Transformer, torch_kernel
from vlx.models.vision.classifier import Classifier, encode_places, subnetwork
from vlx.models.vision.resnet import ResNetTower

# Table 1 (B, L, H); Ti and S from the appendix's successor, Steiner et al., 2021, Table 2.
SIZES = {
  "Ti": dict(width=192, depth=12, mlp_dim=768, num_heads=3),
  "S": dict(width=384, depth=12, mlp_dim=1536, num_heads=6),
  "B": dict(width=768, depth=12, mlp_dim=3072, num_heads=12),
  "L": dict(width=1024, depth=24, mlp_dim=4096, num_heads=16),
  "H": dict(width=1280, depth=32, mlp_dim=5120, num_heads=16),
}


def published_size(name: str) -> dict:
  """Fields of a published model by the paper's notation: "B/16" → width, depth, …, patch_size."""
  size, patch_size = name.split("/")
  return dict(SIZES[size], patch_size=int(patch_size))


class VisionTransformer(nn.Module):
  """Image `[B, H, W, 3]` → (pooled `[B, width]`, tokens `[B, N, width]`).

  Any `H`, `W` that patches tile are taken; positions learned at `image_size` are resampled.
  """

  image_size: int
  patch_size: int
  width: int
  depth: int
  num_heads: int
  mlp_dim: int
  pool: str = "cls"  # "cls" (a class token) or "mean" (of all tokens)
  stem: tuple[int, ...] = ()  # channels of 3x3 stride-2 convolutions before the patch embedding
  # Whose map is cut into patches: the hybrid of §3.1. Its norms are over the batch, where the paper's
  # are over groups, with standardised weights.
  backbone: ResNetTower | None = None
  patch_bias: bool = True
  pre_norm: bool = False
  activation: str = "gelu_tanh"
  layer_norm_epsilon: float = 1e-6
  embedding_std: float = 0.02  # of positions, and with `pre_norm` of the class token (CLIP)
  cls_position: bool = (
    True  # whether the class token has a position of its own; in big_vision it has none
  )
  resampling: str = "linear"  # of positions; "cubic" as Hugging Face does
  initialization: str = "xavier"
  dropout: float = 0.0
  remat: bool = False
  unroll: int = 1
  dtype: str = "float32"

  @nn.compact
  def __call__(
    self, image: Float[Array, "batch height width 3"], *, train: bool = False
  ) -> tuple[Float[Array, "batch features"], Float[Array, "batch tokens features"]]:
    if self.pool not in ("cls", "mean"):
      raise ValueError(f"pool is 'cls' or 'mean', not {self.pool!r}")
    x = jnp.asarray(image, self.dtype)
    for i, channels in enumerate(self.stem):
      if x.shape[1] % 2 or x.shape[2] % 2:
        raise ValueError(f"an image of {x.shape[1]}x{x.shape[2]} cannot be halved")
      x = nn.Conv(
        channels,
        (3, 3),
        (2, 2),
        padding=((0, 1), (0, 1)),
        use_bias=False,
        kernel_init=nn.initializers.he_normal(),
        dtype=self.dtype,
        name=f"stem_{i}",
      )(x)
      x = nn.LayerNorm(self.layer_norm_epsilon, dtype=self.dtype, name=f"stem_norm_{i}")(x)
      x = jax.nn.relu(x)
    if self.backbone is not None:
      _, x = self.backbone(x, train=train)
    patch = self.patch_size * x.shape[1] // image.shape[1]
    if x.shape[1] % patch or x.shape[2] % patch:
      raise ValueError(
        f"patches of {self.patch_size} do not tile an image of {image.shape[1]}x{image.shape[2]}"
      )
    x = nn.Conv(
      self.width,
      (patch, patch),
      (patch, patch),
      padding="VALID",
      use_bias=self.patch_bias,
      kernel_init=torch_kernel
      if self.initialization == "torch"
      else nn.initializers.lecun_normal(),
      dtype=self.dtype,
      name="patch_embedding",
    )(x)
    grid = x.shape[1:3]
    x = rearrange(x, "b h w d -> b (h w) d")

    learned_grid = (self.image_size // self.patch_size,) * 2
    positions = self.param(
      "position_embedding",
      nn.initializers.normal(self.embedding_std),
      (1, (self.pool == "cls" and self.cls_position) + math.prod(learned_grid), self.width),
    )
    positions = resample_positions(positions, learned_grid, grid, self.resampling).astype(x.dtype)
    if self.pool == "cls":
      cls_init = (
        nn.initializers.normal(self.embedding_std) if self.pre_norm else nn.initializers.zeros
      )
      cls = self.param("cls", cls_init, (1, 1, self.width))
      if not self.cls_position:
        positions = jnp.concatenate([jnp.zeros_like(positions[:, :1]), positions], axis=1)
      x = jnp.concatenate([jnp.tile(cls.astype(x.dtype), (x.shape[0], 1, 1)), x], axis=1)
    x = x + positions
    x = nn.Dropout(self.dropout, deterministic=not train)(x)

    norm = lambda name: nn.LayerNorm(self.layer_norm_epsilon, dtype=self.dtype, name=name)
    if self.pre_norm:
      x = norm("pre_norm")(x)
    transformer = Transformer(
      depth=self.depth,
      num_heads=self.num_heads,
      mlp_dim=self.mlp_dim,
      activation=self.activation,
      dropout=self.dropout,
      layer_norm_epsilon=self.layer_norm_epsilon,
      initialization=self.initialization,
      remat=self.remat,
      unroll=self.unroll,
      dtype=self.dtype,
      name="transformer",
    )
    final_norm = norm("final_norm")
    if self.pool == "mean":
      x = final_norm(transformer(x, train=train))
      return x.mean(axis=1), x
    cls, x = transformer.pooled(x, jnp.zeros(len(x), jnp.int32), train=train)
    return final_norm(cls), final_norm(x)

  @property
  def has_batch_statistics(self) -> bool:
    return self.backbone is not None

  @nn.nowrap
  def _sown(self, own, image):
    """The values that layers sow, with a leading depth axis."""
    _, collections = self.apply(own, image, mutable=["intermediates"])
    return collections["intermediates"]["transformer"]["blocks"]

  @nn.nowrap
  def hidden(
    self, own, image: Float[Array, "batch height width 3"], layer: int
  ) -> Float[Array, "batch tokens features"]:
    """Output of one of the layers, before the last norm, of this tower's own variables."""
    (hidden,) = self._sown(own, image)["hidden"]
    return hidden[layer]

  @nn.nowrap
  def attention_map(
    self, own, image: Float[Array, "batch height width 3"]
  ) -> Float[Array, "batch rows columns"]:
    """Where the pooled output looks: rollout from the class token (or the mean) to the patches.

    The class token's own share is dropped, as in the paper's Figure 6. Needs a square image.
    """
    (weights,) = self._sown(own, image)["attention"]["attention"]
    rollout = attention_rollout(weights)
    pooled = rollout[:, 0, 1:] if self.pool == "cls" else rollout.mean(axis=1)
    return rearrange(pooled, "b (h w) -> b h w", h=image.shape[1] // self.patch_size)


def attention_rollout(
  weights: Float[Array, "depth batch heads tokens tokens"],
) -> Float[Array, "batch tokens tokens"]:
  """Attention from the output's tokens to the input's, through all layers.

  Abnar & Zuidema, 2020: A̅ = mean over heads; Ã = ½A̅ + ½I for the residual; R = Ã_L ⋯ Ã₁.
  Rows of the result sum to one.
  """
  weights = reduce(weights, "l b h q k -> l b q k", "mean")
  weights = 0.5 * weights + 0.5 * jnp.eye(weights.shape[-1])
  rollout, _ = jax.lax.scan(lambda r, a: (a @ r, None), weights[0], weights[1:])
  return rollout


class Representation(nn.Module):
  """The tower's pooled output, after a Dense + tanh where `representation_size` is given."""

  tower: VisionTransformer
  representation_size: int

  @nn.compact
  def __call__(self, image: Float[Array, "batch height width 3"]) -> Float[Array, "batch features"]:
    x = self.tower(image)[0]
    if self.representation_size:
      x = jnp.tanh(nn.Dense(self.representation_size, name="pre_logits")(x))
    return x


class ViTNetwork(nn.Module):
  """Tower and head: a Dense, after a Dense + tanh where `representation_size` is given."""

  tower: VisionTransformer
  num_classes: int
  representation_size: int
  head_bias: float

  @nn.compact
  def __call__(
    self, image: Float[Array, "batch height width 3"], *, train: bool = False
  ) -> Float[Array, "batch classes"]:
    x, _ = self.tower(image, train=train)
    x = jnp.asarray(x, jnp.float32)
    if self.representation_size:
      x = jnp.tanh(nn.Dense(self.representation_size, name="pre_logits")(x))
    return nn.Dense(
      self.num_classes,
      kernel_init=nn.initializers.zeros,
      bias_init=nn.initializers.constant(self.head_bias),
      name="head",
    )(x)


@dataclasses.dataclass(frozen=True)
class ViT(Classifier):
  """The classifier of the paper. Batches hold `image` and `label`."""

  tower: VisionTransformer
  num_classes: int
  representation_size: int = 0
  head_bias: float = 0.0  # the released code starts ImageNet-21k pretraining at -10
  label_smoothing: float = 0.0
  num_labels: int = 1  # of an image

  @property
  def network(self) -> nn.Module:
    return ViTNetwork(self.tower, self.num_classes, self.representation_size, self.head_bias)

  def attention_maps(self, variables, inputs) -> Float[Array, "batch rows columns"]:
    """Rollout of the tower's attention, of `image`."""
    return self.tower.attention_map(subnetwork(variables, "tower"), inputs["image"])


@dataclasses.dataclass(frozen=True)
class ViTEncoder:
  """The tower alone, as public files without a classifier have it; it has no loss of its own.

  `representation_size` is that of the layer before the absent head, Hugging Face's pooler; 0: none.
  """

  tower: VisionTransformer
  representation_size: int = 0

  @property
  def network(self) -> nn.Module:
    return Representation(self.tower, self.representation_size)

  def inputs(self):
    return {"image": image_input(self.tower.image_size)}

  def init(self, rng):
    return apply.init(self.network, rng, self.inputs(), "image")

  def embed_image(
    self, variables, image: Float[Array, "batch height width 3"]
  ) -> Float[Array, "batch features"]:
    """What a head would see: the normed class token, through the pooler where there is one."""
    return apply.infer(self.network, variables, image)

  def encode_image(
    self, variables, image: Float[Array, "batch height width 3"], *, layer: int = -1
  ) -> Float[Array, "batch places features"]:
    """The tower's tokens, after the last norm or of another layer."""
    return encode_places(self.tower, variables, "tower", image, layer)

  def attention_maps(self, variables, inputs) -> Float[Array, "batch rows columns"]:
    """Rollout of the tower's attention, of `image`."""
    return self.tower.attention_map(subnetwork(variables, "tower"), inputs["image"])
