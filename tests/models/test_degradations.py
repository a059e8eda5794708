"""What makes images worse."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vlx.models.generation import degradations


def smooth(side=24, rows=2):
  """Images with edges and gradients."""
  y, x = np.mgrid[:side, :side] / side
  image = np.stack([np.sin(5 * x), np.cos(4 * y), np.where(x + y > 1, 0.7, -0.4)], axis=-1)
  return jnp.asarray(np.stack([image * (1 - 0.3 * i) for i in range(rows)]), jnp.float32)


@pytest.mark.parametrize("quality", [30, 75, 95])
def test_jpeg_is_libjpegs(quality):
  image = np.asarray(smooth(20)[0])
  pixels = np.round((image + 1) * 127.5).astype(np.uint8)
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, "jpeg", quality=quality, subsampling=0)
  expected = np.asarray(Image.open(file), np.float32)
  found = (
    np.asarray(degradations.jpeg(jnp.asarray(pixels / 127.5 - 1), float(quality))) + 1
  ) * 127.5
  lost = np.abs(pixels - expected).mean()
  assert lost > 0.3  # it loses something
  assert np.abs(found - expected).mean() < 0.35 * lost  # libjpeg computes with whole numbers


def test_a_gaussian_of_deviation_06_on_three_pixels():
  side = np.exp(-0.5 / 0.6**2)
  row = np.array([side, 1, side]) / (1 + 2 * side)
  np.testing.assert_allclose(
    degradations.gaussian(3, jnp.eye(2) / 0.36), np.outer(row, row), rtol=1e-5
  )


@pytest.mark.parametrize("kind", degradations.KINDS)
def test_one_color_stays_but_for_noise(kind):
  image = jnp.full((8, 16, 24, 3), jnp.array([0.5, -0.25, 0.0]))
  made = degradations.degraded(kind, jax.random.key(0), image, 2)
  assert made.shape == (8, 8, 12, 3)
  atol = 0.1 if kind == "bsr" else 1e-6
  np.testing.assert_allclose(made.mean((0, 1, 2)), image[0, 0, 0], atol=atol)


def test_each_image_is_made_worse_by_itself():
  images = smooth(16, rows=3)
  made = degradations.degraded("bsr", jax.random.key(0), images, 2)
  rngs = jax.random.split(jax.random.key(0), 3)
  for image, rng, expected in zip(images, rngs, made):
    np.testing.assert_allclose(degradations._bsr(rng, image, 2), expected, atol=1e-5)
  same = degradations.degraded("bsr", jax.random.key(0), images[:1].repeat(3, axis=0), 2)
  assert np.abs(same[0] - same[1]).max() > 0.02


def test_blur_loses_what_is_fine():
  fine = jnp.asarray(np.indices((16, 16)).sum(0) % 2 * 2.0 - 1)[None, ..., None]
  coarse = smooth(16, rows=1)
  blurred = lambda x: degradations.degraded("blur", jax.random.key(0), x, 1)
  assert np.abs(blurred(fine)).max() < 0.5
  np.testing.assert_allclose(blurred(coarse)[..., :2], coarse[..., :2], atol=0.06)
