"""Images of a prompt, of an image, of a part of one, of none; films; what is told. By a tiny Stable Diffusion."""

import numpy as np
import pytest
from PIL import Image

import vlx
from tests.parity.recorded import PARITY
from vlx.core.errors import UserError
from vlx.generate import outputs

FOLDER = PARITY / "stable_diffusion"
HOW = dict(num_steps=2, guidance_scale=2.0)


@pytest.fixture(scope="module")
def model():
  return vlx.load(FOLDER)


@pytest.fixture(scope="module")
def image():
  return np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)


@pytest.fixture(scope="module")
def film(model):
  return model.generate_film("a cab", 3, **HOW)


def test_a_film_ends_with_the_images(model, film):
  images = model.generate_images("a cab", 3, **HOW)
  assert images.shape == (3, 16, 16, 3) and film.shape == (3, 2, 16, 16, 3)
  assert np.abs(film[:, -1].astype(int) - images).max() <= 1  # of two programs
  assert np.abs(images[0].astype(int) - images[1]).max() > 1


def test_a_film_is_drawn_and_plays(film, tmp_path):
  assert len(outputs.film_strip(film, "a cab").axes) == 6
  path = outputs.save_animation(film, tmp_path / "film.webp")
  with Image.open(path) as animation:
    assert animation.n_frames == 2 and animation.size == (48, 16)
    animation.seek(1)
    shown = np.asarray(animation.convert("RGB"))
  np.testing.assert_array_equal(shown[:, 16:32], film[1, -1])


def test_no_text_is_a_prompt_too(model):
  inputs = model.prompt_inputs("")
  np.testing.assert_array_equal(inputs["text"], model.system.empty_text)
  assert inputs["text_mask"].all()
  images, others = (model.generate_images(prompt, 3, **HOW) for prompt in ("", "a cab"))
  assert np.abs(images.astype(int) - others).max() > 1


def test_of_an_image_that_nothing_goes_of_no_prompt_makes_another(model, image):
  how = dict(image=image, num_steps=4, strength=0.0)
  one, other = (model.generate_images(prompt, 1, **how) for prompt in ("a cab", "abba"))
  np.testing.assert_array_equal(one, other)


def test_outside_of_a_mask_an_image_stays(model, image):
  mask = np.zeros((16, 16, 3), np.uint8)
  mask[4:12] = 255
  made = model.generate_images("a cab", 1, image=image, mask=mask, num_steps=2)[0]
  np.testing.assert_array_equal(made[:4], image[:4])
  np.testing.assert_array_equal(made[12:], image[12:])
  assert np.abs(made[4:12].astype(int) - image[4:12]).max() > 10


def test_a_samplers_method_is_a_field_like_others(model):
  one, other = (model.generate_images("a cab", 1, num_steps=2, method=m) for m in ("ddim", "euler"))
  assert one.shape == other.shape
  default = model.generate_images("a cab", 1, num_steps=2)
  np.testing.assert_array_equal(one, default)


def test_what_cannot_be_is_told(model, image):
  for how, message in (
    (dict(mask=image), "a mask needs an image"),
    (dict(mask=image[:8], image=image), "the mask is 16x8, and the image 16x16"),
    (dict(strength=0.5), "needs an image to start from"),
    (dict(num_steps=1001), "num_steps must be at most 1000"),
    (dict(strength=1.5), "strength must be in 0 … 1"),
    (dict(temperature=1.0), "Sampler has no field sampler.temperature: valid names: bound, eta,"),
    (dict(numsteps=4), "sampler.numsteps: did you mean 'num_steps'"),
    (dict(num_steps="ten"), "sampler.num_steps is 'ten', not int"),
    (dict(guidance_interval=0.5), "sampler.guidance_interval is 0.5, not a list of float or int"),
  ):
    with pytest.raises(UserError, match=message):
      model.generate_images("a cab", 1, **how)
  with pytest.raises(UserError, match="the prompt is too long: this model reads 12 tokens"):
    model.generate_images("abc " * 12, 1)


@pytest.mark.slow
def test_the_command(command, tmp_path):
  out = tmp_path / "cab.png"
  flags = (f"--model={FOLDER}", "--prompt=a cab", "--num=2", "--num_steps=2", f"--output={out}")
  code, stdout, stderr = command(
    "vlx.generate", *flags, "--guidance_scale=3", "--film", "--progress"
  )
  assert code == 0 and "2/2" in stderr, stderr
  assert stdout.split() == [
    str(tmp_path / name) for name in ("cab.png", "cab_film.png", "cab_film.webp")
  ]
  assert all(path.stat().st_size > 100 for path in tmp_path.iterdir())
  for more, message in (
    ("--sampler=num_steps=3", "--num_steps and --sampler both give num_steps"),
    ("--strength=2", "strength must be in 0 … 1, not 2.0"),
    ("--mask=mask.png", "a mask needs an image"),
  ):
    code, _, stderr = command("vlx.generate", *flags, more)
    assert code == 2 and len(stderr.strip().splitlines()) == 1 and message in stderr
