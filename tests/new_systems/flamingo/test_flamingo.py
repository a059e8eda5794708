"""Between the layers of a public LLaMA, which stays what it was: at first nothing, then what
looks at the image.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import vlx
from tests import contract
from tests.new_systems import harness, public
from tests.new_systems.flamingo.config import IMAGE_ID, get_config
from vlx.core.system import part
from vlx.models.layers import apply

TEXT = np.array([[5, 9, IMAGE_ID, 7, 8, 6], [IMAGE_ID, 4, 4, 5, 6, 7]], np.int32)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  folder = tmp_path_factory.mktemp("flamingo")
  return harness.exercise(get_config(*public.publish(folder)), folder)


@pytest.fixture(scope="module")
def model(run):
  return vlx.load(run.workdir)


extend_cache = jax.jit(lambda system, *args: system.extend_cache(*args), static_argnums=0)


def read(system, variables, images, text=TEXT):
  """Logits of what comes after each prefix: the texts token by token, through the cache."""
  cache, found = system.empty_cache(len(text), 16), []
  for at in range(text.shape[1]):
    new = {"text": jnp.asarray(text[:, at : at + 1]), "text_mask": jnp.ones((len(text), 1), bool)}
    new |= {} if at else {"image": jnp.asarray(images)}
    logits, cache = extend_cache(system, variables, new, cache)
    found.append(logits)
  return np.stack(found, axis=1)


def test_only_what_is_between_the_layers_learned(run):
  assert {path.split("/")[0] for path, one in run.learning.items() if not one.frozen} == {"gated"}
  assert all(
    x.dtype == "bfloat16"
    for name, x in harness.last_state(run).items()
    if name.startswith("frozen/params")
  )


def test_at_first_it_is_the_language_model(model):
  fresh = contract.init(model.system)
  variables = {**fresh, "params": {**model.variables["params"], "gated": fresh["params"]["gated"]}}
  images = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
  decoder, theirs = model.system.language_model.decoder, part(variables, "language_model")
  expected, _ = jax.jit(lambda v: apply.infer(decoder, v, jnp.asarray(TEXT)))(theirs)
  np.testing.assert_allclose(read(model.system, variables, images), expected, rtol=1e-5, atol=1e-5)


def test_the_image_is_seen_from_where_it_stands_and_not_before(model):
  alphas = model.variables["params"]["gated"]["attention_alpha"]
  assert alphas.shape == (2,) and (np.abs(alphas) > 1e-3).all()
  one, other = (
    read(
      model.system,
      model.variables,
      np.repeat(model.prepare_images([Image.new("RGB", (16, 16), color)]), 2, 0),
    )
    for color in ("red", "blue")
  )
  differ = np.abs(one - other).max(axis=-1) > 1e-6
  assert differ.tolist() == [[False, False, True, True, True, True], [True] * 6]


def test_reading_token_by_token_is_reading_at_once(model):
  images = jnp.asarray(np.random.default_rng(1).normal(size=(2, 16, 16, 3)), jnp.float32)
  at_once, _ = extend_cache(
    model.system,
    model.variables,
    {"text": jnp.asarray(TEXT), "text_mask": jnp.ones(TEXT.shape, bool), "image": images},
    model.system.empty_cache(2, 16),
  )
  np.testing.assert_allclose(
    read(model.system, model.variables, images)[:, -1], at_once, rtol=1e-5, atol=1e-5
  )


def test_it_talks_about_an_image(model):
  answer, chat = model.chat("what is there ?", Image.new("RGB", (20, 30), "red"), max_tokens=3)
  assert isinstance(answer, str) and len(chat.messages) == 2
  again, chat = model.chat("and now ?", history=chat, max_tokens=3)
  assert len(chat.messages) == 4


@pytest.mark.slow
def test_it_compiles_for_a_pod(run):
  assert harness.compiles_for_a_pod(run.config)["bytes_per_device"]["frozen"] > 0
