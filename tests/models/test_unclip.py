"""unCLIP's prior and decoder."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vlx
from tests import contract
from vlx.core import partition
from vlx.core.errors import UserError
from vlx.inference.diffusion import Process
from vlx.model import Model
from vlx.models.contrastive.clip import CLIP, TextTransformer
from vlx.models.generation.unclip import UnCLIP, UnCLIPSampler, slerp
from vlx.models.generation.unclip_ar_prior import ARPriorSampler
from vlx.models.generation.unclip_decoder import UnCLIPDecoder
from vlx.models.generation.unclip_prior import DiffusionPrior, PriorNetwork, PriorSampler
from vlx.models.generation.unclip_upsampler import UnCLIPUpsampler, crops
from vlx.models.layers.unet import UNet
from vlx.models.vision.vit import VisionTransformer

TOWER = dict(width=8, depth=1, num_heads=2, mlp_dim=16)
SEEN = CLIP(
  VisionTransformer(image_size=16, patch_size=8, **TOWER),
  TextTransformer(vocab_size=20, context_length=6, **TOWER),
  embed_dim=8,
)
NETWORK = PriorNetwork(dim=8, text_length=6, width=16, depth=1, num_heads=2, mlp_dim=32)
PLAIN = UNet(
  channels=3, width=8, multipliers=(1,), num_blocks=1, attention_at=(1,), head_dim=4, groups=4,
  joint_attention=True, scale_shift=True, residual_resampling=True,
)  # fmt: skip
DECODER = dataclasses.replace(PLAIN, channels=6)
SYSTEMS = {
  "prior": DiffusionPrior(clip=SEEN, network=NETWORK, image_size=16),
  "standardised": DiffusionPrior(
    clip=SEEN, network=NETWORK, image_size=16, scale=0.0, no_text=(1, 2)
  ),
  "decoder": UnCLIPDecoder(
    clip=SEEN, clip_size=16, unet=DECODER, image_size=8, text_length=6, context_width=12,
    process=Process("cosine", learned_variance=True),
  ),
  "upsampler": UnCLIPUpsampler(
    unet=dataclasses.replace(
      PLAIN, joint_attention=False, attention_at=(), middle_attention=False
    ),
    image_size=16, low_size=8, crop_size=8, degradation="bsr",
  ),
}  # fmt: skip


def batch(rows=4):
  keys = jax.random.split(jax.random.key(1), 2)
  return {
    "image": jax.random.uniform(keys[0], (rows, 16, 16, 3), minval=-1),
    "text": jax.random.randint(keys[1], (rows, 6), 1, 20),
    "text_mask": jnp.arange(6) < jnp.array([[6], [3], [2], [5]])[:rows],
  }


@pytest.fixture(params=["prior", "decoder", "upsampler"])
def made(request):
  return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def prior():
  return SYSTEMS["prior"], contract.drawn(SYSTEMS["prior"], 0.3)


@pytest.fixture(scope="module")
def decoder():
  return SYSTEMS["decoder"], contract.drawn(SYSTEMS["decoder"], 0.3)


@pytest.fixture(scope="module")
def upsampler():
  return SYSTEMS["upsampler"], contract.drawn(SYSTEMS["upsampler"], 0.3)


def text_of(inputs):
  return {name: inputs[name] for name in ("text", "text_mask")}


def test_it_learns(made):
  system, variables = made

  def loss(own):
    params = {**variables["params"], **own}
    terms, _ = system.loss(
      {**variables, "params": params}, batch(), jax.random.key(0), step=0, train=True,
      frozen=frozenset(["clip"]),
    )  # fmt: skip
    return sum(term.mean * term.weight for term in terms.values())

  own = {name: x for name, x in variables["params"].items() if name != "clip"}
  gradients = jax.jit(jax.grad(loss))(own)
  still = {
    "/".join(map(str, path))
    for path, x in jax.tree_util.tree_leaves_with_path(gradients)
    if not x.any()
  }
  assert not still


def test_of_two_draws_the_nearer_to_the_text_is_kept(prior):
  system, variables = prior
  inputs = text_of(batch())

  @jax.jit
  def embed(variables, seeds):
    how = lambda draws: PriorSampler(4, draws=draws)
    both = system.sample_image_embeddings(variables, inputs, seeds, how(2))
    one, other = (
      system.sample_image_embeddings(variables, inputs, 2 * seeds + i, how(1)) for i in (0, 1)
    )
    return both, one, other

  found, *drawn = embed(variables, jnp.arange(4))
  text = SEEN.embed_text({k: v["clip"] for k, v in variables.items()}, **inputs)
  products = np.stack([np.einsum("bd,bd->b", x, text) for x in drawn])
  assert len(set(products.argmax(0))) == 2  # of these seeds it is not always the same
  expected = np.where((products[1] > products[0])[:, None], drawn[1], drawn[0])
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_no_text_says_nothing(prior):
  system, variables = prior
  inputs = text_of(batch())
  other = {**inputs, "text": inputs["text"][::-1], "text_mask": inputs["text_mask"][::-1]}
  said = lambda inputs, given: system.network.apply(
    {"params": system._own(variables)["params"]},
    jnp.ones((4, 8)),
    jnp.arange(4),
    *system._text(variables, inputs, given),
  )
  np.testing.assert_allclose(said(inputs, False), said(other, False), atol=1e-6)
  assert np.abs(said(inputs, True) - said(other, True)).max() > 1e-3


def test_embeddings_are_standardised_by_the_first_batches():
  system = SYSTEMS["standardised"]
  variables = contract.init(system)
  rng = np.random.default_rng(0)
  batches = [{"image": jnp.asarray(rng.uniform(-1, 1, (4, 16, 16, 3)), "f")} for _ in range(20)]
  prepared = system.prepare(variables, batches, jax.random.key(0))
  x0 = np.concatenate([system._x0(prepared, b["image"]) for b in batches])
  np.testing.assert_allclose(x0.mean(0), 0, atol=1e-4)
  np.testing.assert_allclose(x0.std(0), 1, atol=1e-4)
  clip = {k: v["clip"] for k, v in variables.items()}
  z = SEEN.embed_image(clip, batches[0]["image"])
  np.testing.assert_allclose(system._embedding(prepared, jnp.asarray(x0[:4])), z, atol=1e-5)


def test_what_is_left_out_is_not_seen(decoder):
  system, variables = decoder
  inputs = batch()
  turned = {name: x[::-1] for name, x in inputs.items()}
  mine = system._own(variables)
  x = jax.random.normal(jax.random.key(2), (4, 8, 8, 3))

  @jax.jit
  def said(inputs, image, text):
    condition = system._condition(variables, inputs, (image, text))
    return system.network.apply({"params": mine["params"]}, x, jnp.arange(4), **condition)

  by_image = {**inputs, "image": turned["image"]}
  by_text = {**turned, "image": inputs["image"]}
  for other, given in ((by_image, (False, True)), (by_text, (True, False))):
    np.testing.assert_allclose(said(inputs, *given), said(other, *given), atol=1e-5)
    assert np.abs(said(inputs, True, True) - said(other, True, True)).max() > 1e-3


def test_variations_of_an_image_are_of_its_embedding(decoder):
  system, variables = decoder
  inputs = batch(2)
  clip = {k: v["clip"] for k, v in variables.items()}
  told = {**text_of(inputs), "image_embedding": SEEN.embed_image(clip, inputs["image"])}
  how = system.Sampler(2, guidance_scale=2.0)
  sample = jax.jit(lambda inputs: system.sample_images(variables, inputs, jnp.arange(2), how))
  found = sample(inputs)
  assert found.shape == (2, 8, 8, 3)
  np.testing.assert_allclose(found, sample(told), atol=1e-5)
  assert np.abs(found - sample(text_of(inputs))).max() > 1e-3


def test_an_upsampler_of_whole_images_and_a_last_step():
  system = dataclasses.replace(SYSTEMS["upsampler"], separate_last=True)
  variables = contract.drawn(system, 0.2)
  low = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 8, 12, 3)), jnp.float32)
  networks = {name: {"params": variables["params"][name]} for name in ("first", "last")}
  large = jax.image.resize(low, (2, 16, 24, 3), "cubic")
  x = jax.random.normal(jax.random.key(0), large.shape)
  condition = system._condition(variables, {"low_resolution": low}, True)
  for t, name in ((5, "first"), (0, "last")):
    rows = jnp.full(2, t)
    said = system.network.apply({"params": variables["params"]}, x, rows, **condition)
    expected = system.unet.apply(networks[name], x, rows, low_resolution=large)
    np.testing.assert_allclose(said, expected, atol=1e-5)


def test_an_upsamplers_image_made_small_and_large(upsampler):
  system, variables = upsampler
  found = jax.jit(system.reconstruct)(variables, batch(2)["image"])
  assert found.shape == (2, 16, 16, 3) and np.isfinite(found).all()


def test_slerp_keeps_lengths_and_goes_by_angle():
  rng = np.random.default_rng(0)
  a, b = (jnp.asarray(rng.normal(size=(3, 5)), jnp.float32) for _ in "ab")
  length = lambda x: np.linalg.norm(x, axis=-1)
  angle = lambda x, y: np.arccos(np.clip(np.sum(x * y, -1) / length(x) / length(y), -1, 1))
  for share in (0.0, 0.25, 1.0):
    found = slerp(a, b, jnp.full(3, share))
    np.testing.assert_allclose(length(found), length(a), rtol=1e-5)
    np.testing.assert_allclose(angle(found, b), (1 - share) * angle(a, b), atol=2e-3)
  np.testing.assert_allclose(slerp(a, a, jnp.full(3, 0.5)), a, rtol=1e-5)


@pytest.fixture(scope="module")
def pipeline(prior, decoder, upsampler):
  system = UnCLIP(prior=SYSTEMS["prior"], decoder=SYSTEMS["decoder"], first=SYSTEMS["upsampler"])
  return system, contract.drawn(system, 0.2)


HOW = UnCLIPSampler(2, prior_steps=2, upsampler_steps=2)


@pytest.fixture(scope="module")
def sample(pipeline):
  system, variables = pipeline
  run = jax.jit(lambda v, inputs, seeds: system.sample_images(v, inputs, seeds, HOW))
  return lambda inputs, seeds: np.asarray(run(variables, inputs, jnp.asarray(seeds)))


def test_all_stages_of_a_text(sample):
  inputs = text_of(batch())
  found = sample(inputs, range(4))
  assert found.shape == (4, 16, 16, 3)
  one = {name: x[1:3] for name, x in inputs.items()}
  np.testing.assert_allclose(sample(one, range(1, 3)), found[1:3], atol=1e-4)


def test_between_two_images_and_along_a_change_of_text(sample):
  inputs = batch(2)
  seeds, turned = [5, 6], {name: x[::-1] for name, x in inputs.items()}
  plain = sample(inputs, seeds)
  share = lambda x: jnp.full(2, x)
  between = lambda x: sample({**inputs, "towards": turned["image"], "share": share(x)}, seeds)
  np.testing.assert_allclose(between(0.0), plain, atol=1e-4)
  other = sample({**inputs, "image": turned["image"]}, seeds)
  np.testing.assert_allclose(between(1.0), other, atol=0.05)
  assert np.abs(between(0.5) - plain).max() > 1e-3
  before = {f"from_{name}": turned[name] for name in ("text", "text_mask")}
  changed = lambda x: sample({**inputs, **before, "share": share(x)}, seeds)
  np.testing.assert_allclose(changed(0.0), plain, atol=1e-4)
  assert np.abs(changed(0.5) - plain).max() > 1e-3


def test_upsamplers_that_do_not_fit_are_told():
  parts = dict(prior=SYSTEMS["prior"], decoder=SYSTEMS["decoder"])
  with pytest.raises(ValueError, match="first enlarges images of 4 pixels, and is given 8"):
    UnCLIP(**parts, first=dataclasses.replace(SYSTEMS["upsampler"], low_size=4))
  with pytest.raises(ValueError, match="a second upsampler stands behind a first"):
    UnCLIP(**parts, second=SYSTEMS["upsampler"])


def test_by_the_models_methods(pipeline):
  system, variables = pipeline
  mesh = partition.make_mesh(dict(data=-1, fsdp=1, tensor=1))
  model = Model(system, variables, None, "decode|resize(16)|normalize", mesh)
  one, other = (np.random.default_rng(i).integers(0, 255, (16, 16, 3), np.uint8) for i in (0, 1))
  how = dict(num_steps=1, prior_steps=1, upsampler_steps=1)
  moved = model.generate_images("", 3, image=one, towards=other, **how)
  assert moved.shape == (3, 16, 16, 3)
  varied = model.generate_images("", 2, image=one, **how)
  np.testing.assert_array_equal(moved[0], varied[0])
  with pytest.raises(UserError, match="an image goes towards another one, or from one prompt"):
    model.generate_images("", 2, towards=other)


def test_either_prior_is_asked_by_its_own_sampler():
  how = UnCLIPSampler(prior_steps=7, prior_guidance_scale=4.0, prior_bound=5.0, draws=3)
  by_diffusion = how.prior(PriorSampler)
  assert (by_diffusion.num_steps, by_diffusion.bound, by_diffusion.threshold) == (7, 5.0, "static")
  in_turn = how.prior(ARPriorSampler)
  assert in_turn == ARPriorSampler(guidance_scale=4.0, draws=3)


def test_stages_by_themselves_are_asked_for_what_they_take(decoder, upsampler):
  mesh = partition.make_mesh(dict(data=-1, fsdp=1, tensor=1))
  model = lambda stage: Model(*stage, None, "decode|resize(16)|normalize", mesh)
  assert model(decoder).generate_images("", 1, num_steps=1).shape == (1, 8, 8, 3)
  with pytest.raises(UserError, match="samples of low_resolution, which no prompt gives"):
    model(upsampler).generate_images("", 1)


def test_a_pipeline_that_reads_no_images_says_so():
  model = vlx.load("tests/parity/karlo")
  image = np.zeros((16, 16, 3), np.uint8)
  with pytest.raises(UserError, match="to start from an image: CLIPTextTower lacks EmbedsImages"):
    model.generate_images("", 1, image=image)


def test_crops_are_squares_anywhere_in_each_image():
  image = jnp.arange(3 * 6 * 5 * 1.0).reshape(3, 6, 5, 1)
  drawn = [crops(jax.random.key(i), image, 4) for i in range(20)]
  corners = {tuple(np.asarray(x[:, 0, 0, 0], int)) for x in drawn}
  rows = [{c[i] - 30 * i for c in corners} for i in range(3)]
  assert all(found == {0, 1, 5, 6, 10, 11} for found in rows)  # each of three by two
  for x in drawn:
    for made, first in zip(x[..., 0], x[:, 0, 0, 0]):
      np.testing.assert_array_equal(made, first + 5 * np.arange(4)[:, None] + np.arange(4))
