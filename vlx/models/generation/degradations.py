"""What makes an image worse: what upsamplers learn to undo.

Gaussian blur, as Cascaded Diffusion (Ho et al., 2022, §4.2) has it; and of BSRGAN (Zhang et al., "Designing a Practical
Degradation Model for Deep Blind Image Super-Resolution", 2021, §3) blur by kernels of any direction, shrinking, blur,
noise and JPEG, in this order; the paper shuffles them, shrinks twice and has a camera's sensor besides.

Images are in [-1, 1]; each is made worse by its own random numbers.
"""

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, reduce
from jaxtyping import Array, Float

Image = Float[Array, "height width channels"]
Images = Float[Array, "batch height width channels"]

KINDS = ("none", "blur", "bsr")
KERNEL = 7  # of BSR's blurs
# Annex K of the JPEG standard.
_LUMA = np.array(
  """16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51 87 80 62
  18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101 72 92 95 98 112 100 103 99""".split(),
  float,
).reshape(8, 8)
_CHROMA = np.full((8, 8), 99.0)
_CHROMA[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]
_TO_YCBCR = np.array(
  [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]]
)
_k, _n = np.meshgrid(np.arange(8), np.arange(8), indexing="ij")
_DCT = np.where(_k == 0, np.sqrt(1 / 8), np.sqrt(2 / 8) * np.cos((2 * _n + 1) * _k * np.pi / 16))


def shrunk(images: Images, factor: int) -> Float[Array, "batch rows columns channels"]:
  """The mean of each `factor` x `factor` pixels."""
  return reduce(images, "b (r y) (c x) d -> b r c d", "mean", y=factor, x=factor)


def degraded(kind: str, rng: jax.Array, images: Images, factor: int) -> jax.Array:
  """Images `factor` times smaller, made worse.

  Args:
    kind: none; blur, Gaussian with σ 0.6 by a 3x3 kernel, after shrinking; or bsr.
    rng: of bsr.
    images: of sides that divide by the factor.
    factor: see there.
  """
  small = shrunk(images, factor)
  match kind:
    case "none":
      return small
    case "blur":
      return jax.vmap(lambda image: _blurred(image, gaussian(3, jnp.eye(2) / 0.6**2)))(small)
  one = lambda image, rng: _bsr(rng, image, factor)
  return jax.vmap(one)(images, jax.random.split(rng, len(images)))


def gaussian(size: int, precision: Float[Array, "2 2"]) -> Float[Array, "size size"]:
  """A kernel of sum 1; `precision` is the inverse of the covariance, in pixels."""
  place = jnp.arange(size) - (size - 1) / 2
  at = jnp.stack(jnp.meshgrid(place, place, indexing="ij"), axis=-1)
  weights = jnp.exp(-0.5 * jnp.einsum("yxi,ij,yxj->yx", at, precision, at))
  return weights / weights.sum()


def _blurred(image: Image, kernel: Float[Array, "size size"]) -> Image:
  half = len(kernel) // 2
  padded = jnp.pad(image, ((half, half), (half, half), (0, 0)), mode="edge")
  channels = rearrange(padded, "h w c -> c 1 h w")
  found = jax.lax.conv(channels, kernel[None, None].astype(image.dtype), (1, 1), "VALID")
  return rearrange(found, "c 1 h w -> h w c")


def _bsr(rng: jax.Array, image: Image, factor: int) -> Float[Array, "rows columns channels"]:
  rngs = jax.random.split(rng, 4)
  image = shrunk(_blurred(image, _any_kernel(rngs[0], 0.2 * factor + 0.1))[None], factor)[0]
  image = _blurred(image, _any_kernel(rngs[1], 0.4))
  level, where = jax.random.split(rngs[2])
  deviation = 2 * jax.random.uniform(level, minval=1.0, maxval=25.0) / 255
  image = image + deviation * jax.random.normal(where, image.shape)
  return jpeg(image.clip(-1, 1), jax.random.uniform(rngs[3], minval=30.0, maxval=95.0))


def _any_kernel(rng: jax.Array, most: float) -> Float[Array, "size size"]:
  """A Gaussian of deviations up to `most`, but 0.1, along axes of any direction."""
  turn, width = jax.random.split(rng)
  angle = jax.random.uniform(turn, maxval=jnp.pi)
  axes = jnp.array([[jnp.cos(angle), -jnp.sin(angle)], [jnp.sin(angle), jnp.cos(angle)]])
  deviations = jax.random.uniform(width, (2,), minval=0.1, maxval=most)
  return gaussian(KERNEL, axes @ jnp.diag(1 / deviations**2) @ axes.T)


def jpeg(image: Image, quality: float | jax.Array) -> Image:
  """What JPEG leaves of an image, without fewer pixels for color. Qualities are libjpeg's, 1 to 100."""
  height, width, _ = image.shape
  padded = jnp.pad(image, ((0, -height % 8), (0, -width % 8), (0, 0)), mode="edge")
  # Whole numbers of 0 … 255, less 128.
  ycbcr = jnp.round(jnp.einsum("hwc,dc->dhw", 127.5 * padded - 0.5, _TO_YCBCR))
  blocks = rearrange(ycbcr, "d (r y) (c x) -> d r c y x", y=8, x=8)
  found = jnp.einsum("ky,drcyx,lx->drckl", _DCT, blocks, _DCT)
  scale = jnp.where(quality < 50, 50 / quality, 2 - quality / 50)
  tables = jnp.stack([_LUMA, _CHROMA, _CHROMA])[:, None, None]
  step = jnp.clip(jnp.round(tables * scale), 1, 255)
  found = jnp.einsum("ky,drckl,lx->drcyx", _DCT, jnp.round(found / step) * step, _DCT)
  ycbcr = jnp.round(rearrange(found, "d r c y x -> d (r y) (c x)"))
  back = (jnp.einsum("dhw,cd->hwc", ycbcr, np.linalg.inv(_TO_YCBCR)) + 0.5) / 127.5
  return back[:height, :width].clip(-1, 1)
