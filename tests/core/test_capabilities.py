"""What each system can do, and in which shapes."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from tests import contract
from vlx.core import capabilities as c
from vlx.core import config as configs
from vlx.core.errors import UserError
from vlx.core.system import Trains, batch_shapes
from vlx.inference.decoding import Search
from vlx.models.language.llama import LanguageModel, LLaMA, LLaMAEncoder
from vlx.models.pretraining.bert import BERT, BERTEncoder, MaskedLanguageModel
from vlx.models.vision.vit import ViTEncoder

SHAPE = jax.ShapeDtypeStruct
TINY = dict(vocab_size=30, context_length=12, width=16, depth=2, num_heads=2, mlp_dim=16)


def smoke(name):
  return configs.build_system(configs.load_config(f"configs/{name}.py:smoke"))


DIFFUSION = {c.GeneratesImages, c.ChangesImages, c.SamplesWithoutText, c.FilmsSampling}
SYSTEMS = {
  "clip": (
    lambda: smoke("clip"),
    {
      c.EmbedsImages,
      c.EmbedsText,
      c.ComparesEmbeddings,
      c.EncodesImages,
      c.EncodesText,
      c.ShowsAttention,
    },
  ),
  "vit": (lambda: smoke("vit"), {c.Classifies, c.EmbedsImages, c.EncodesImages, c.ShowsAttention}),
  "vqvae": (lambda: smoke("vqvae"), {c.TokenizesImages, c.Reconstructs}),
  "dvae": (lambda: smoke("dvae"), {c.TokenizesImages, c.Reconstructs}),
  "autoencoder": (lambda: smoke("autoencoder"), {c.Autoencodes, c.Reconstructs}),
  "ddpm": (lambda: smoke("ddpm"), DIFFUSION),
  "latent_diffusion": (lambda: smoke("latent_diffusion"), DIFFUSION | {c.Reconstructs}),
  "dalle": (lambda: smoke("dalle"), {c.GeneratesImages, c.ChangesImages, c.Reconstructs}),
  "show_and_tell": (lambda: smoke("show_and_tell"), {c.CaptionsImages}),
  "show_attend_tell": (lambda: smoke("show_attend_tell"), {c.CaptionsImages, c.ShowsAttention}),
  "bert": (lambda: MaskedLanguageModel(BERT(**TINY)), {c.EmbedsText, c.EncodesText}),
  "bert alone": (lambda: BERTEncoder(BERT(**TINY)), {c.EmbedsText, c.EncodesText}),
  "llama": (lambda: LanguageModel(LLaMA(**TINY, num_groups=1, epsilon=1e-5)), {c.GeneratesText}),
  "llama alone": (lambda: LLaMAEncoder(LLaMA(**TINY, num_groups=1, epsilon=1e-5)), {c.EncodesText}),
  "vit alone": (
    lambda: ViTEncoder(smoke("vit").tower),
    {c.EmbedsImages, c.EncodesImages, c.ShowsAttention},
  ),
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_what_a_system_can_do(name):
  make, expected = SYSTEMS[name]
  system = make()
  assert {getattr(c, found) for found in c.of(system)} == expected
  assert c.has(system, Trains) == (not name.endswith("alone"))
  variables = contract.shapes(system)
  if c.has(system, Trains):
    batch = batch_shapes(system.inputs(), 3)
    terms, aux = jax.eval_shape(
      lambda v, b, k: system.loss(v, b, k, step=0, train=True, frozen=frozenset()),
      variables,
      batch,
      jax.random.key(0),
    )
    assert terms and all(term.sum.shape == () for term in terms.values())
    assert jax.tree.structure(aux.state) == jax.tree.structure(variables["state"])
    assert isinstance(system.accumulates(), str)
  of = lambda method, *inputs, **how: jax.eval_shape(
    lambda v, *x: getattr(system, method)(v, *x, **how), variables, *inputs
  )
  if c.has(system, c.EncodesImages):
    image = SHAPE((3, *system.inputs()["image"].shape), jnp.float32)
    batch, places, dim = of("encode_image", image).shape
    assert batch == 3 and of("encode_image", image, layer=-2).shape == (3, places, dim)
    assert of("embed_image", image).ndim == 2
  if c.has(system, c.EmbedsText):
    text = SHAPE((3, 5), jnp.int32), SHAPE((3, 5), jnp.bool_)
    assert of("embed_text", *text).shape[0] == 3 and of("encode_text", *text).shape[:2] == (3, 5)
    assert system.text_length and system.vocab_size
  if c.has(system, c.TokenizesImages):
    image = SHAPE((3, system.image_size, system.image_size, 3), jnp.float32)
    tokens = of("image_to_tokens", image)
    assert tokens.shape == (3, *system.grid) and of("tokens_to_image", tokens).shape == image.shape
    assert of("reconstruct", image).shape == image.shape
  if c.has(system, c.GeneratesImages):
    inputs = batch_shapes(system.sample_inputs(), 3)
    assert of("sample_images", inputs, SHAPE((3,), jnp.int32), sampler=system.Sampler()).shape == (
      3,
      16,
      16,
      3,
    )
  if c.has(system, c.CaptionsImages):
    inputs = {"image": SHAPE((3, 32, 32, 3), jnp.float32)}
    ids, scores = of("caption", inputs, search=Search(2, 6))
    assert ids.shape == (3, 2, 6) and scores.shape == (3, 2)
  if c.has(system, c.GeneratesText):
    cache = system.empty_cache(3, 8)
    inputs = {"text": SHAPE((3, 4), jnp.int32), "text_mask": SHAPE((3, 4), jnp.bool_)}
    logits, _ = of("extend_cache", inputs, cache)
    assert logits.shape == (3, system.vocab_size)


def test_what_is_lacking_is_told_with_what_there_is():
  with pytest.raises(UserError) as error:
    c.require(smoke("vqvae"), c.CaptionsImages, c.Reconstructs, what="runs/x")
  assert str(error.value) == (
    "runs/x: VQVAE lacks CaptionsImages (The likeliest captions of an image, best first, by a"
    " `vlx.inference.decoding.Search`.) It has: TokenizesImages, Reconstructs"
  )


def test_a_module_of_flax_is_no_system():
  from vlx.core.system import parts

  @dataclasses.dataclass(frozen=True)
  class Holder:
    tower: BERT
    inner: BERTEncoder

    def init(self, rng):
      return {"params": {}, "state": {}}

  assert list(parts(Holder(BERT(**TINY), BERTEncoder(BERT(**TINY))))) == ["inner"]


def test_what_is_begun_and_not_finished_is_told():
  class Half:
    def sample_images(self, v, inputs, seeds, sampler): ...

  assert c.unfinished(Half()) == ["sample_images without Sampler, sample_inputs (GeneratesImages)"]
  assert "sample_images without Sampler" in c.listed(Half())
  for name in ("clip", "vqvae", "dalle", "llama"):
    assert not c.unfinished(SYSTEMS[name][0]())
