"""Diffusion in pixels and in latents: the loss, conditions, samples, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import contract
from vlx.core.errors import UserError
from vlx.inference.diffusion import Process
from vlx.inference.samplers import Sampler
from vlx.models.contrastive.clip import CLIPTextEncoder, TextTransformer
from vlx.models.generation.autoencoder import KLAutoencoder
from vlx.models.generation.ddpm import DDPM
from vlx.models.generation.latent_diffusion import LatentDiffusion
from vlx.models.layers.unet import UNet, sinusoids

SMALL = dict(channels=3, width=4, multipliers=(1, 2), num_blocks=1, attention_at=(2,), groups=2)
TEXT = CLIPTextEncoder(TextTransformer(11, 6, width=8, depth=1, num_heads=2, mlp_dim=8))
AUTOENCODER = KLAutoencoder(
  image_size=16, latent_channels=3, width=4, multipliers=(1, 2), num_blocks=1, groups=2
)
IMAGE = jax.random.uniform(jax.random.key(7), (3, 8, 8, 3), minval=-1, maxval=1)


def text(lengths, rows=3):
  ids = jnp.arange(1, 6 * rows + 1).reshape(rows, 6) % 11
  return {"text": ids, "text_mask": jnp.arange(6) < jnp.array(lengths)[:, None]}


def of_text(**changes):
  fields = dict(
    unet=UNet(**SMALL, transformer_depth=1),
    image_size=8,
    text_encoder=TEXT,
    text_length=6,
    **changes,
  )
  return DDPM(**fields)


def awake(system, seed=0):
  """Variables none of which is zero: a fresh network says nothing."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda s: jnp.asarray(rng.normal(0, 0.2, s.shape), s.dtype), contract.shapes(system)
  )


def loss_of(system, variables, batch, seed=0):
  run = lambda variables, batch: contract.loss(
    system, variables, batch, jax.random.key(seed), step=0, train=True
  )
  return jax.jit(run)(variables, batch)


def count(network, channels, side, **given):
  shapes = jax.eval_shape(
    lambda rng: network.init(rng, jnp.zeros((1, side, side, channels)), jnp.zeros(1), **given),
    jax.random.key(0),
  )
  return sum(x.size for x in jax.tree.leaves(shapes))


def test_published_parameter_counts():
  ddpm = UNet(
    3,
    128,
    (1, 2, 2, 2),
    attention_at=(2,),
    symmetric_padding=False,
    cos_first=False,
    frequency_shift=1,
  )
  assert count(ddpm, 3, 32) == 35_746_307
  of_latents = UNet(4, 320, (1, 2, 4, 4), attention_at=(1, 2, 4), num_heads=8, transformer_depth=1)
  assert count(of_latents, 4, 32, context=jnp.zeros((1, 77, 768))) == 859_520_964
  assert count(of_latents, 4, 32, context=jnp.zeros((1, 77, 1280))) == 872_300_484


def test_the_loss_is_the_error_of_a_random_step():
  system = DDPM(unet=UNet(**SMALL), image_size=8, condition_dropout=0.0)
  variables = awake(system)
  loss, _ = loss_of(system, variables, {"image": IMAGE}, 3)
  keys = jax.random.split(jax.random.key(3), 5)
  t = jax.random.randint(keys[1], (3,), 0, 1000)
  eps = jax.random.normal(keys[2], IMAGE.shape)
  alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[np.asarray(t)][:, None, None, None]
  x = jnp.float32(np.sqrt(alpha_bar)) * IMAGE + jnp.float32(np.sqrt(1 - alpha_bar)) * eps
  found = jax.jit(system.unet.apply)({"params": variables["params"]}, x, t)
  assert loss == pytest.approx(np.square(found - eps).mean(), rel=1e-4)


def test_a_fresh_network_says_zero_whose_error_is_one():
  system = DDPM(unet=UNet(**SMALL), image_size=8)
  loss, _ = loss_of(system, contract.init(system), {"image": IMAGE})
  assert loss == pytest.approx(1, abs=0.15)


def test_padding_is_not_seen_and_a_missing_text_is_none():
  system = of_text()
  variables = awake(system)
  x, t = jnp.concatenate([IMAGE[:1]] * 3), jnp.array([5, 5, 5])
  mine = {"params": {k: v for k, v in variables["params"].items() if k != "text_encoder"}}
  said = jax.jit(
    lambda inputs, given: system.unet.apply(
      mine, x, t, **system._condition(variables, inputs, given)
    )
  )
  inputs = text([3, 3, 3])
  changed = {**inputs, "text": inputs["text"].at[:, 4:].set(0)}
  np.testing.assert_allclose(said(inputs, True), said(changed, True), atol=1e-5)
  assert np.abs(said(inputs, True) - said(text([6, 6, 6]), True)).max() > 1e-4
  nothing = said(inputs, False)
  np.testing.assert_allclose(nothing[0], nothing[1], atol=1e-5)
  some = said(inputs, jnp.array([True, False, True]))
  np.testing.assert_allclose(some[1], nothing[1], atol=1e-5)


def test_an_empty_text_stands_for_none_and_padding_is_its_last():
  system = of_text(empty_text=(1, 2, 9, 9, 9, 9))
  variables = awake(system)
  inputs = text([3, 3, 3])
  condition = lambda inputs, given: system._condition(variables, inputs, given)["context"]
  padded = jnp.where(inputs["text_mask"], inputs["text"], 9)
  whole = TEXT.encode_text(
    {k: v["text_encoder"] for k, v in variables.items() if k == "params"} | {"state": {}},
    padded,
    inputs["text_mask"],
  )
  np.testing.assert_allclose(condition(inputs, True), whole, atol=1e-6)
  empty = TEXT.encode_text(
    {"params": variables["params"]["text_encoder"], "state": {}},
    jnp.array([system.empty_text]),
    jnp.ones((1, 6), bool),
  )
  np.testing.assert_allclose(condition(inputs, False)[1], empty[0], atol=1e-6)


def test_gradients_reach_the_text_encoder_and_the_unet():
  system = of_text(condition_dropout=0.0)
  variables = awake(system)
  batch = {"image": IMAGE, **text([3, 4, 5])}
  loss = lambda params: contract.loss(
    system, {**variables, "params": params}, batch, jax.random.key(0), step=0, train=True
  )[0]
  gradient = jax.jit(jax.grad(loss))(variables["params"])
  for name in ("text_encoder", "in", "middle_attention"):
    assert any(np.abs(x).max() > 0 for x in jax.tree.leaves(gradient[name])), name


def test_classes_have_a_row_for_none():
  unet = UNet(**SMALL, num_classes=5)
  system = DDPM(unet=unet, image_size=8, num_classes=4)
  label = jnp.array([0, 3, 1])
  found = system._condition({}, {"label": label}, jnp.array([True, True, False]))["label"]
  np.testing.assert_array_equal(found, [0, 3, 4])
  variables = awake(system)
  sample = jax.jit(
    lambda label, scale: system.sample_images(
      variables, {"label": label}, jnp.arange(3), system.Sampler(2, guidance_scale=scale)
    ),
    static_argnums=1,
  )
  plain, guided = sample(label, 1.0), sample(label, 3.0)
  assert plain.shape == (3, 8, 8, 3) and np.abs(plain - guided).max() > 1e-4
  # Samples are functions of their own inputs and seeds.
  np.testing.assert_allclose(sample(label.at[0].set(2), 3.0)[1:], guided[1:], atol=1e-5)


def test_latents_are_scaled_to_a_deviation_of_one():
  system = LatentDiffusion(unet=UNet(**SMALL), image_size=16, autoencoder=AUTOENCODER)
  assert system.x0_shape == (8, 8, 3)
  variables = awake(system)
  image = jax.random.uniform(jax.random.key(0), (4, 16, 16, 3), minval=-1, maxval=1)
  prepared = jax.jit(lambda v: system.prepare(v, [{"image": image}], jax.random.key(1)))(variables)
  encode = lambda system: jax.jit(system._encode)(prepared, image, jax.random.key(1))
  x0 = encode(system)
  assert x0.std() == pytest.approx(1, rel=1e-3)
  part = {k: v.get("autoencoder", {}) for k, v in prepared.items()}
  latents = jax.jit(AUTOENCODER.encode_latents)(part, image, jax.random.key(1))
  decoded = jax.jit(AUTOENCODER.decode_latents)(part, latents)
  np.testing.assert_allclose(jax.jit(system._decode)(prepared, x0), decoded, atol=1e-3)
  constant = LatentDiffusion(
    unet=UNet(**SMALL), image_size=16, autoencoder=AUTOENCODER, latent_scale=0.5
  )
  np.testing.assert_allclose(encode(constant), 0.5 * latents, atol=1e-5)
  assert constant.prepare(variables, [], jax.random.key(1)) is variables


def test_a_mask_keeps_the_given_pixels_and_a_film_ends_with_the_image():
  system = LatentDiffusion(unet=UNet(**SMALL), image_size=16, autoencoder=AUTOENCODER)
  variables = awake(system)
  image = jax.random.uniform(jax.random.key(0), (2, 16, 16, 3), minval=-1, maxval=1)
  mask = jnp.zeros((2, 16, 16, 1)).at[:, 3:9].set(1)
  sampler = Sampler(3, method="dpm_solver")
  run = jax.jit(lambda inputs: system.sample_images(variables, inputs, jnp.arange(2), sampler))
  made = run({"image": image, "mask": mask})
  np.testing.assert_array_equal(made[:, :3], image[:, :3])
  assert np.abs(made[:, 3:9] - image[:, 3:9]).max() > 0.01
  film = jax.jit(lambda: system.sample_film(variables, {}, jnp.arange(2), sampler))()
  assert film.shape == (2, 3, 16, 16, 3)
  np.testing.assert_allclose(film[:, -1], run({}), atol=1e-3)


def test_what_starts_from_an_image_is_a_function_of_its_seed_whatever_the_batch():
  system = LatentDiffusion(unet=UNet(**SMALL), image_size=16, autoencoder=AUTOENCODER)
  variables = awake(system)
  image = jax.random.uniform(jax.random.key(0), (1, 16, 16, 3), minval=-1, maxval=1)
  sampler = Sampler(2, strength=0.5)
  run = jax.jit(lambda v, image, seeds: system.sample_images(v, {"image": image}, seeds, sampler))
  made = run(variables, jnp.repeat(image, 3, axis=0), jnp.arange(4, 7))
  np.testing.assert_allclose(run(variables, image, jnp.array([6]))[0], made[2], atol=1e-4)
  assert np.abs(made[1] - made[2]).max() > 0.01


def test_learned_variances_have_a_bound():
  process = Process(timesteps=50, learned_variance=True)
  system = DDPM(unet=UNet(**{**SMALL, "channels": 6}), image_size=8, process=process)
  variables = awake(system)
  _, aux = loss_of(system, variables, {"image": IMAGE})
  assert aux.metrics.keys() == {"error", "bound"} and aux.metrics["bound"] > 0
  sampler = system.Sampler(2, method="ancestral")
  made = jax.jit(lambda v: system.sample_images(v, {}, jnp.arange(2), sampler))(variables)
  assert np.isfinite(made).all()


@pytest.mark.parametrize(
  "fields, message",
  [
    (
      dict(unet=UNet(**SMALL), image_size=9),
      "9x9, the size of what is noised, does not divide by 2",
    ),
    (dict(unet=UNet(**{**SMALL, "channels": 6}), image_size=8), "unet.channels must be 3"),
    (dict(unet=UNet(**SMALL), image_size=8, num_classes=4), "unet.num_classes must be 5"),
    (dict(unet=UNet(**SMALL, transformer_depth=1), image_size=8), "a text_encoder goes with"),
    (
      dict(unet=UNet(**SMALL), image_size=8, weighting="snr"),
      "weighting is one of simple, vlb, min_snr",
    ),
    (
      dict(
        unet=UNet(**SMALL, transformer_depth=1),
        image_size=8,
        text_encoder=TEXT,
        text_length=6,
        empty_text=(1,),
      ),
      "empty_text has 1 ids, and text_length is 6",
    ),
  ],
)
def test_sizes_that_do_not_fit_are_told(fields, message):
  with pytest.raises(ValueError, match=message):
    DDPM(**fields)


def test_an_autoencoder_of_another_factor_is_told():
  unet = UNet(**{**SMALL, "multipliers": (1, 1, 1, 1)})
  fits = dict(unet=unet, image_size=16)
  LatentDiffusion(autoencoder=AUTOENCODER, **fits)
  other = KLAutoencoder(
    image_size=16, latent_channels=3, width=4, multipliers=(1, 1, 1), num_blocks=1, groups=2
  )
  with pytest.raises(ValueError, match="4x4, the size of what is noised, does not divide by 8"):
    LatentDiffusion(autoencoder=other, **fits)


def test_guidance_without_a_condition_is_told():
  system = DDPM(unet=UNet(**SMALL), image_size=8)
  with pytest.raises(UserError, match="guidance_scale is of a class or a text"):
    system.sample_images(contract.init(system), {}, jnp.arange(1), Sampler(2, guidance_scale=2.0))


def test_the_low_resolution_image_is_seen():
  network = UNet(**SMALL)
  x, low, t = IMAGE, jax.random.normal(jax.random.key(0), (3, 4, 4, 3)), jnp.zeros(3)
  shapes = jax.eval_shape(
    lambda rng: network.init(rng, x, t, low_resolution=low), jax.random.key(0)
  )
  assert shapes["params"]["in"]["kernel"].shape == (3, 3, 6, 4)
  rng = np.random.default_rng(0)
  variables = jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.2, s.shape), s.dtype), shapes)
  said = jax.jit(lambda low: network.apply(variables, x, t, low_resolution=low))
  assert np.abs(said(low) - said(0 * low)).max() > 1e-4


def test_time_is_told_as_ddpm_tells_it():
  t = jnp.array([0.0, 7.0])
  ddpm = sinusoids(t, 8, cos_first=False, shift=1)
  np.testing.assert_allclose(ddpm[1, :4], np.sin(7 * 10_000.0 ** -(np.arange(4) / 3)), atol=1e-5)
  later = sinusoids(t, 8, cos_first=True, shift=0)
  np.testing.assert_allclose(later[1, :4], np.cos(7 * 10_000.0 ** -(np.arange(4) / 4)), atol=1e-5)
