"""VQ-VAE.

van den Oord et al., "Neural Discrete Representation Learning", 2017. Here: the encoder and decoder
of §4.1, the nearest code with its straight-through gradient, and the codebook moved by its loss
(eq. 3) or by moving averages (appendix A.1; bias-corrected and smoothed as in DeepMind's sonnet and
dm-haiku). The prior over the codes is DALL-E's transformer (vlx.models.generation.dalle) where the
paper has a PixelCNN.

As in DeepMind's example (sonnet, vqvae_example.ipynb): the reconstruction term is the squared error over the
data's variance, averaged over pixels; a 1x1 convolution leads to the codes, a 3x3 one away from them; a ReLU
follows the residual blocks. Field beyond the paper: `restart_below`, for codes that nothing is near to
(Dhariwal et al., "Jukebox", 2020, §3.1).
"""

import dataclasses
import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vlx.core.system import Aux, Term, image_input
from vlx.models.layers import apply
from vlx.ops.nearest_code import code_statistics, nearest_code, straight_through

EPSILON = 1e-5  # of the smoothed counts; sonnet and dm-haiku


class ResidualStack(nn.Module):
  """`num_blocks` times x + conv1x1(relu(conv3x3(relu(x)))), and a ReLU."""

  num_blocks: int
  width: int
  dtype: str

  @nn.compact
  def __call__(self, x: Float[Array, "batch rows columns features"]):
    for i in range(self.num_blocks):
      y = nn.Conv(self.width, (3, 3), dtype=self.dtype, name=f"block{i}_conv1")(nn.relu(x))
      x = x + nn.Conv(x.shape[-1], (1, 1), dtype=self.dtype, name=f"block{i}_conv2")(nn.relu(y))
    return nn.relu(x)


class Encoder(nn.Module):
  """Image → one vector for each cell of the grid; every width halves the sides."""

  widths: tuple[int, ...]
  num_blocks: int
  residual_width: int
  code_dim: int
  dtype: str

  @nn.compact
  def __call__(
    self, image: Float[Array, "batch height width 3"]
  ) -> Float[Array, "batch rows columns dim"]:
    conv = functools.partial(nn.Conv, dtype=self.dtype)
    x = image
    for i, width in enumerate(self.widths):
      x = nn.relu(conv(width, (4, 4), (2, 2), padding=1, name=f"halve{i}")(x))
    x = conv(self.widths[-1], (3, 3), name="conv")(x)
    x = ResidualStack(self.num_blocks, self.residual_width, self.dtype, name="residual")(x)
    return conv(self.code_dim, (1, 1), name="to_code")(x).astype(jnp.float32)


class Decoder(nn.Module):
  """The encoder mirrored."""

  widths: tuple[int, ...]
  num_blocks: int
  residual_width: int
  dtype: str

  @nn.compact
  def __call__(
    self, codes: Float[Array, "batch rows columns dim"]
  ) -> Float[Array, "batch height width 3"]:
    x = nn.Conv(self.widths[-1], (3, 3), dtype=self.dtype, name="from_code")(codes)
    x = ResidualStack(self.num_blocks, self.residual_width, self.dtype, name="residual")(x)
    for i, width in enumerate((*self.widths[-2::-1], 3)):
      x = x if i == 0 else nn.relu(x)
      x = nn.ConvTranspose(width, (4, 4), (2, 2), dtype=self.dtype, name=f"double{i}")(x)
    return x.astype(jnp.float32)


class VQVAENetwork(nn.Module):
  """Both halves; the codebook is among the parameters only where its loss moves it."""

  encoder: Encoder
  decoder: Decoder
  codebook_shape: tuple[int, int] | None

  def setup(self):
    if self.codebook_shape:
      self.codebook = self.param("codebook", init_codebook, self.codebook_shape)

  def encode(
    self, image: Float[Array, "batch height width 3"]
  ) -> Float[Array, "batch rows columns dim"]:
    return self.encoder(image)

  def decode(
    self, codes: Float[Array, "batch rows columns dim"]
  ) -> Float[Array, "batch height width 3"]:
    return self.decoder(codes)

  def __call__(
    self, image: Float[Array, "batch height width 3"]
  ) -> Float[Array, "batch height width 3"]:
    return self.decode(self.encode(image))


def init_codebook(rng: jax.Array, shape: tuple[int, int]) -> Float[Array, "codes dim"]:
  """Uniform in ±1/K, as in the authors' code."""
  return jax.random.uniform(rng, shape, minval=-1 / shape[0], maxval=1 / shape[0])


def init_averages(codebook: Float[Array, "codes dim"]) -> dict[str, jax.Array]:
  """The `state` of a codebook that averages move; `counts` and `sums` are not corrected for
  their start.
  """
  return {
    "codebook": codebook,
    "counts": jnp.zeros(codebook.shape[0]),
    "sums": jnp.zeros_like(codebook),
    "updates": jnp.zeros((), jnp.int32),
  }


def update_codebook_ema(
  averages: dict[str, jax.Array],
  z: Float[Array, "batch rows columns dim"],
  ids: Int[Array, "batch rows columns"],
  rng: jax.Array,
  *,
  decay: float,
  restart_below: float,
) -> dict[str, jax.Array]:
  """The averages after one more batch (appendix A.1): N ← γN + (1−γ)n, m ← γm + (1−γ)Σz, e = m/N.

  Codes whose N is less than `restart_below` rows a batch start anew at a row of the batch.
  """
  codebook = averages["codebook"]
  counts, sums = code_statistics(z, ids, len(codebook))
  counts = decay * averages["counts"] + (1 - decay) * counts
  sums = decay * averages["sums"] + (1 - decay) * sums
  updates = averages["updates"] + 1
  correction = 1 - decay ** updates.astype(jnp.float32)
  if restart_below:
    rows = jax.lax.stop_gradient(z).reshape(-1, z.shape[-1])
    rows = rows[jax.random.randint(rng, counts.shape, 0, len(rows))]
    dead = counts < restart_below * correction
    counts = jnp.where(dead, restart_below * correction, counts)
    sums = jnp.where(dead[:, None], restart_below * correction * rows, sums)
  n = counts / correction
  total = n.sum()
  smoothed = (n + EPSILON) / (total + len(codebook) * EPSILON) * total
  return {
    "codebook": sums / correction / smoothed[:, None],
    "counts": counts,
    "sums": sums,
    "updates": updates,
  }


class Quantized(NamedTuple):
  """Codes of encodings with the straight-through gradient, their indices, the two terms that tie
  both.
  """

  codes: Float[Array, "batch rows columns dim"]
  ids: Int[Array, "batch rows columns"]
  codebook_loss: Float[Array, ""]
  commitment: Float[Array, ""]


def quantize(
  z: Float[Array, "batch rows columns dim"], codebook: Float[Array, "codes dim"]
) -> Quantized:
  """The nearest codes (§3.1), and the second and third term of eq. 3 as means over all numbers."""
  ids = nearest_code(z, codebook)
  codes = codebook[ids]
  stop = jax.lax.stop_gradient
  return Quantized(
    straight_through(z, codes),
    ids,
    jnp.mean((stop(z) - codes) ** 2),
    jnp.mean((z - stop(codes)) ** 2),
  )


def codebook_usage(ids: Int[Array, "*batch"], num_codes: int) -> dict[str, jax.Array]:
  """Statistics of the codes in a batch: `perplexity`, exp of their entropy, and `codes_used`, in percent."""
  share = jnp.zeros(num_codes).at[ids.reshape(-1)].add(1.0) / ids.size
  entropy = -jnp.sum(jnp.where(share > 0, share * jnp.log(jnp.where(share > 0, share, 1)), 0))
  return {"perplexity": jnp.exp(entropy), "codes_used": 100 * (share > 0).mean()}


@dataclasses.dataclass(frozen=True)
class VQVAE:
  """The system; it tokenizes images. Batches hold `image`, in [-1, 1]."""

  image_size: int
  widths: tuple[int, ...]
  num_blocks: int
  residual_width: int
  num_codes: int
  code_dim: int
  codebook: str = "ema"  # or "loss"
  beta: float = 0.25  # §3.2, of the commitment loss
  decay: float = 0.99  # appendix A.1, γ
  restart_below: float = 0.0  # rows a batch; 0: codes are never restarted
  data_variance: float = 1.0  # of the pixels
  dtype: str = "float32"

  def __post_init__(self):
    if self.codebook not in ("ema", "loss"):
      raise ValueError(f"codebook is 'ema' or 'loss', not {self.codebook!r}")
    if self.restart_below and self.codebook == "loss":
      raise ValueError("restart_below needs the counts of codebook='ema'")
    if self.image_size % 2 ** len(self.widths):
      raise ValueError(
        f"an image of {self.image_size} pixels cannot be halved {len(self.widths)} times"
      )

  @property
  def grid(self) -> tuple[int, int]:
    """Rows and columns of an image's codes."""
    return (self.image_size // 2 ** len(self.widths),) * 2

  @property
  def network(self) -> VQVAENetwork:
    shared = dict(
      widths=self.widths,
      num_blocks=self.num_blocks,
      residual_width=self.residual_width,
      dtype=self.dtype,
    )
    shape = (self.num_codes, self.code_dim) if self.codebook == "loss" else None
    return VQVAENetwork(Encoder(code_dim=self.code_dim, **shared), Decoder(**shared), shape)

  def inputs(self):
    return {"image": image_input(self.image_size)}

  def init(self, rng):
    params = apply.init(self.network, rng, self.inputs(), "image")["params"]
    if self.codebook == "loss":
      return {"params": params, "state": {}}
    codebook = init_codebook(jax.random.fold_in(rng, 1), (self.num_codes, self.code_dim))
    return {"params": params, "state": init_averages(codebook)}

  def _codebook(self, variables) -> Float[Array, "codes dim"]:
    return variables["params" if self.codebook == "loss" else "state"]["codebook"]

  def _apply(self, variables, *inputs, method):
    return self.network.apply({"params": variables["params"]}, *inputs, method=method)

  def loss(self, variables, batch, rng, *, step, train, frozen):
    """Eq. 3; with moving averages its second term is theirs. `step` is not used."""
    del step
    state = variables["state"]
    z = self._apply(variables, batch["image"], method="encode")
    codes, ids, codebook_loss, commitment = quantize(z, self._codebook(variables))
    image = self._apply(variables, codes, method="decode")
    squares = (batch["image"] - image) ** 2
    terms = {
      "reconstruction": Term(squares.sum() / self.data_variance, squares.size),
      "commitment": Term(commitment * z.size, z.size, self.beta),
    }
    if self.codebook == "loss":
      terms["codebook"] = Term(codebook_loss * z.size, z.size)
    elif train:
      state = update_codebook_ema(
        state, z, ids, rng, decay=self.decay, restart_below=self.restart_below
      )
    return terms, Aux(metrics=codebook_usage(ids, self.num_codes), state=state)

  def accumulates(self):
    return "the codebook moves once for each part" if self.codebook == "ema" else ""

  def image_to_tokens(
    self, variables, image: Float[Array, "batch height width 3"]
  ) -> Int[Array, "batch rows columns"]:
    """Each cell's code."""
    return nearest_code(self._apply(variables, image, method="encode"), self._codebook(variables))

  def tokens_to_image(
    self, variables, tokens: Int[Array, "batch rows columns"]
  ) -> Float[Array, "batch height width 3"]:
    return self._apply(variables, self._codebook(variables)[tokens], method="decode")

  def reconstruct(
    self, variables, image: Float[Array, "batch height width 3"]
  ) -> Float[Array, "batch height width 3"]:
    return self.tokens_to_image(variables, self.image_to_tokens(variables, image))
