"""Samples of classes and of no text, steps that are told, films, images and masks that people give; by a tiny DDPM."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import vlx
from tests import contract
from tests.parity.recorded import PARITY
from vlx.core import partition
from vlx.core.errors import UserError
from vlx.data.tokenizers import trained
from vlx.generate import outputs
from vlx.inference import samplers
from vlx.models.contrastive.clip import CLIPTextEncoder, TextTransformer
from vlx.models.generation.ddpm import DDPM
from vlx.models.layers.unet import UNet

UNET = dict(channels=3, width=4, multipliers=(1, 2), num_blocks=1, attention_at=(2,), groups=2)
SYSTEM = DDPM(unet=UNet(**UNET, num_classes=6), image_size=8, num_classes=5)


def model_of(system, variables, tokenizer=None):
  mesh = partition.make_mesh(dict(data=-1, fsdp=1, tensor=1))
  return vlx.model.Model(system, variables, tokenizer, "decode|resize(8)|normalize", mesh)


@pytest.fixture(scope="module")
def model():
  """Of classes 0 to 4, of which 3 and 4 have names; none of its variables is zero."""
  rng = np.random.default_rng(0)
  draw = lambda s: jnp.asarray(rng.normal(0, 0.2, s.shape), s.dtype)
  variables = jax.tree.map(draw, contract.shapes(SYSTEM))
  return model_of(SYSTEM, variables, trained.collect_labels(["dog", "cat"], 5))


def sample(model, prompt="cat", num=2, **how):
  return model.generate_images(prompt, num, **{"num_steps": 2, **how}).astype(int)


def test_a_class_has_a_number_and_a_name(model):
  np.testing.assert_array_equal(sample(model, "cat"), sample(model, "3"))
  assert np.abs(sample(model, "cat") - sample(model, "dog")).max() > 1
  for prompt in ("5", "-1", "bird", ""):
    with pytest.raises(UserError, match="the number of a class, 0 to 4, or its name, not"):
      model.prompt_inputs(prompt)
  with pytest.raises(UserError, match="the number of a class, 0 to 4, not 'cat'"):
    model_of(SYSTEM, {}).prompt_inputs("cat")


def test_nothing_is_attended_to_where_there_is_no_text():
  encoder = CLIPTextEncoder(TextTransformer(11, 6, width=8, depth=1, num_heads=2, mlp_dim=8))
  fields = dict(text_encoder=encoder, text_length=6)
  system = DDPM(unet=UNet(**UNET, transformer_depth=1), image_size=8, **fields)
  inputs = model_of(system, {}).prompt_inputs("")
  wanted = system.sample_inputs()
  assert {n: (x.shape, x.dtype) for n, x in inputs.items()} == {
    n: (s.shape, s.dtype) for n, s in wanted.items()
  }
  assert not inputs["text"].any() and not inputs["text_mask"].any()


def test_steps_are_told_for_each_batch_and_change_nothing(model, monkeypatch, capsys):
  monkeypatch.setattr(vlx.model.Model.map, "__kwdefaults__", {"batch_size": 8})
  plain, told = sample(model, num=9), []
  with samplers.telling_steps(lambda done, steps: told.append((done, steps))):
    np.testing.assert_array_equal(sample(model, num=9), plain)
  assert sorted(told) == [(1, 2), (1, 2), (2, 2), (2, 2)]
  with outputs.steps_bar():
    sample(model, num=9)  # compiled for the other one
  shown = capsys.readouterr().err
  assert shown.count("0/2") == 2 and "2/2" in shown and len(told) == 4
  with pytest.raises(UserError), outputs.steps_bar():
    sample(model, "bird")
  sample(model, num=9)
  assert len(told) == 4 and not samplers.tells_steps() and not capsys.readouterr().err


def test_a_film_ends_with_what_is_given_back(model):
  image = np.random.default_rng(1).integers(0, 255, (8, 8, 3), np.uint8)
  mask = np.zeros((8, 8, 3), np.uint8)
  mask[2:5] = 255
  film = model.generate_film("cat", 1, image=image, mask=mask, num_steps=2)
  outside = mask == 0
  for frame in film[0]:
    np.testing.assert_array_equal(frame[outside], image[outside])
  assert np.abs(film[0, -1].astype(int) - image)[2:5].max() > 10
  still = model.generate_film("cat", 1, image=image, strength=0.0, num_steps=2)
  np.testing.assert_array_equal(still, image[None, None])


def turned() -> bytes:
  """A photo 4 wide and 8 high in its file, 8 wide as it is looked at."""
  photo, out = Image.new("RGB", (4, 8)), io.BytesIO()
  exif = photo.getexif()
  exif[0x0112] = 6
  photo.save(out, "jpeg", exif=exif)
  return out.getvalue()


def test_a_mask_is_of_a_photo_as_people_see_it(model):
  mask = np.zeros((4, 8, 3), np.uint8)
  mask[:, 4:] = 140
  found = model._prepare_mask(Image.fromarray(mask), turned())
  np.testing.assert_array_equal(found[..., 0], np.repeat([[0, 1]], 4, axis=1).repeat(8, axis=0))
  assert found.dtype == np.float32
  with pytest.raises(UserError, match="the mask is 4x8, and the image 8x4"):
    model._prepare_mask(np.zeros((8, 4, 3), np.uint8), turned())


def test_what_would_have_no_effect_is_told(model):
  image = np.zeros((8, 8, 3), np.uint8)
  for how, message in (
    (dict(image=image), "nothing would be left of the image: give a strength below 1"),
    (dict(image=image, mask=b"no image"), "the image cannot be used: image cannot be decoded"),
    (dict(mask=image), "a mask needs an image"),
    (dict(strength=0.5), "needs an image to start from"),
  ):
    with pytest.raises(UserError, match=message):
      sample(model, **how)


def test_the_command_tells_in_one_line_what_is_found_in_tracing(command, tmp_path):
  out = tmp_path / "out.png"
  flags = (f"--model={PARITY / 'stable_diffusion'}", "--prompt=", f"--output={out}", "--progress")
  code, said, err = command("vlx.generate", *flags, "--strength=0.5", "--num_steps=2")
  assert code == 2 and not said and not out.exists()
  assert len(err.strip().splitlines()) == 1 and "needs an image to start from" in err
