"""unCLIP's networks are diffusers' for Karlo."""

import math

import jax
import jax.numpy as jnp
import numpy as np

import vlx
from tests.parity.recorded import PARITY, Recorded, assert_parity, assert_returned, named_shapes
from vlx.core.system import names
from vlx.inference import samplers
from vlx.models.layers import apply
from vlx.pretrained import diffusers_configs, karlo, tables, unet
from vlx.pretrained.tables import public_shapes


def prior_shapes(network, dim_tokens):
  """Of the network's variables, and of the state of its system."""
  shape = jax.ShapeDtypeStruct
  inputs = dict(
    x=shape((network.dim,), jnp.float32),
    t=shape((), jnp.float32),
    text=shape((network.dim,), jnp.float32),
    tokens=shape((network.text_length, dim_tokens), jnp.float32),
    mask=shape((network.text_length,), jnp.bool_),
  )
  made = jax.eval_shape(lambda rng: apply.init(network, rng, inputs, *inputs), jax.random.key(0))
  standard = {name: shape((network.dim,), jnp.float32) for name in ("mean", "deviation")}
  return {**made, "state": {"embeddings": standard}}


def test_the_prior():
  recorded = Recorded("unclip", "prior")
  network = karlo.prior(recorded.config)
  wanted = prior_shapes(network, network.dim)
  rows = karlo.prior_rows(network)
  found = tables.read(rows, wanted, recorded.shapes, recorded.weights.__getitem__)
  variables = jax.tree.map(found.__getitem__, names(wanted))
  x, t, text, tokens, mask = (
    jnp.asarray(recorded.inputs[name])
    for name in (
      "hidden_states", "timestep", "proj_embedding", "encoder_hidden_states", "attention_mask"
    )
  )  # fmt: skip
  mine = {"params": variables["params"], "state": {}}
  said = apply.infer(network, mine, x, t, text, tokens, mask.astype(bool))
  assert_parity(said, recorded.outputs["sample"])
  standard = variables["state"]["embeddings"]
  assert_parity(said * standard["deviation"] + standard["mean"], recorded.outputs["embedding"])
  assert_returned(rows, variables, recorded.weights)


def test_the_priors_size_is_the_published_one():
  network = karlo.prior({})
  wanted = prior_shapes(network, network.dim)
  shapes = public_shapes(karlo.prior_rows(network), wanted)
  assert shapes == named_shapes("karlo_prior")
  assert sum(np.prod(shape, dtype=int) for shape in shapes.values()) == 1_022_030_080


def decoder_shapes(network, dim, length):
  shape = jax.ShapeDtypeStruct
  side = 2 ** (len(network.unet.multipliers) - 1)
  x, t = shape((1, side, side, 3), jnp.float32), shape((1,), jnp.float32)
  condition = dict(
    image=shape((1, dim), jnp.float32),
    given=shape((1,), jnp.bool_),
    text=shape((1, dim), jnp.float32),
    tokens=shape((1, length, dim), jnp.float32),
    mask=shape((1, length), jnp.bool_),
  )
  made = jax.eval_shape(
    lambda rng, x, t: network.init(rng, x, t, **condition_of(condition)), jax.random.key(0), x, t
  )
  return {"params": made["params"], "state": {}}


def condition_of(shapes):
  return {name: jnp.zeros(s.shape, s.dtype) for name, s in shapes.items()}


def test_the_decoder_behind_its_projections():
  recorded = Recorded("unclip", "decoder")
  network = karlo.decoder(recorded.config["decoder"], recorded.config["text_proj"])
  rows = karlo.decoder_rows(network)
  wanted = decoder_shapes(network, 10, 5)
  found = tables.read(rows, wanted, recorded.shapes, recorded.weights.__getitem__)
  variables = jax.tree.map(found.__getitem__, names(wanted))
  image, text, tokens, mask, x, t = (
    jnp.asarray(recorded.inputs[name]) for name in ("image", "text", "tokens", "mask", "x", "t")
  )
  said = network.apply(
    {"params": variables["params"]},
    x,
    t,
    image=jnp.concatenate([jnp.zeros_like(image), image]),
    given=jnp.arange(4) >= 2,
    text=text,
    tokens=tokens,
    mask=mask.astype(bool),
  )
  assert_parity(said, recorded.outputs["sample"])
  assert_returned(rows, variables, recorded.weights)


def test_an_upsampler():
  recorded = Recorded("unclip", "upsampler")
  network = diffusers_configs.unet_2d(recorded.config)
  assert not network.middle_attention and not network.attention_at
  x, low, t = (jnp.asarray(recorded.inputs[name]) for name in ("x", "low", "t"))
  init = lambda rng: network.init(rng, x, t, low_resolution=low)
  wanted = {"params": jax.eval_shape(init, jax.random.key(0))["params"], "state": {}}
  rows = unet.diffusers_rows(network)
  found = tables.read(rows, wanted, recorded.shapes, recorded.weights.__getitem__)
  variables = jax.tree.map(found.__getitem__, names(wanted))
  said = network.apply({"params": variables["params"]}, x, t, low_resolution=low)
  assert_parity(said, recorded.outputs["sample"])


def test_an_upsampler_of_the_published_size():
  config = Recorded("unclip", "upsampler").config | dict(
    block_out_channels=[320, 640, 960, 1280],
    layers_per_block=3,
    norm_num_groups=32,
    down_block_types=["ResnetDownsampleBlock2D"] * 4,
    up_block_types=["ResnetUpsampleBlock2D"] * 4,
  )
  network = diffusers_configs.unet_2d(config)
  x = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
  t = jax.ShapeDtypeStruct((1,), jnp.float32)
  init = lambda rng, x, t: network.init(rng, x, t, low_resolution=x)
  wanted = {"params": jax.eval_shape(init, jax.random.key(0), x, t)["params"], "state": {}}
  shapes = public_shapes(unet.diffusers_rows(network), wanted)
  assert shapes == named_shapes("karlo_upsampler")
  assert sum(np.prod(shape, dtype=int) for shape in shapes.values()) == 691_579_523


def test_the_published_sizes():
  config = Recorded("unclip", "decoder").config
  full = dict(block_out_channels=[320, 640, 960, 1280], layers_per_block=3, norm_num_groups=32)
  four = lambda kinds: [kinds[0], *[kinds[1]] * 3]
  told = {
    **config["decoder"],
    **full,
    "attention_head_dim": 64,
    "cross_attention_dim": 1536,
    "down_block_types": four(config["decoder"]["down_block_types"]),
    "up_block_types": four(config["decoder"]["up_block_types"][::-1])[::-1],
  }
  network = karlo.decoder(told, dict(cross_attention_dim=1536, time_embed_dim=1280))
  shapes = public_shapes(karlo.decoder_rows(network), decoder_shapes(network, 768, 77))
  expected = {
    **{f"decoder.{n}": s for n, s in named_shapes("karlo_decoder").items()},
    **{f"text_proj.{n}": s for n, s in named_shapes("karlo_text_proj").items()},
  }
  assert shapes == expected
  count = lambda part: sum(np.prod(s, dtype=int) for n, s in shapes.items() if n.startswith(part))
  assert (count("decoder."), count("text_proj.")) == (885_439_686, 7_878_400)


def test_karlos_pipeline_is_read_and_gives_its_images(monkeypatch):
  recorded = Recorded("unclip", "pipeline")
  model = vlx.load(PARITY / "karlo")
  text, mask = model.tokenizer.encode_batch(recorded.config["prompts"], 12)
  inputs = {"text": jnp.asarray(text), "text_mask": jnp.asarray(mask)}

  def waves(seeds, index, shape):
    wave = 1.4 * jnp.sin(0.7 * index + 1.3 * jnp.arange(math.prod(shape), dtype=jnp.float32))
    return jnp.broadcast_to(wave.reshape(shape), (len(seeds), *shape))

  monkeypatch.setattr(samplers, "noise", waves)
  how = model.sampler(
    num_steps=3, guidance_scale=3.0, method="ancestral", spacing="linspace", prior_steps=3,
    prior_guidance_scale=2.0, prior_bound=5.0, draws=1, upsampler_steps=3,
  )  # fmt: skip
  system = model.system

  @jax.jit
  def run(v, inputs):
    prior = {kind: tree["prior"] for kind, tree in v.items()}
    z = system.prior.sample_image_embeddings(
      prior, inputs, jnp.arange(2), how.prior(system.prior.Sampler)
    )
    return z, system.sample_images(v, inputs, jnp.arange(2), how)

  z, images = run(model.variables, inputs)
  np.testing.assert_allclose(z, recorded.outputs["embeddings"], atol=1e-4)
  found = ((images + 1) / 2).clip(0, 1)
  np.testing.assert_allclose(found, recorded.outputs["images"], atol=2e-4)
