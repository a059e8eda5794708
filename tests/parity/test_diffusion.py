"""UNets, autoencoders and samplers against diffusers, and against the authors' code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import contract
from tests.parity.recorded import (
  Recorded,
  as_tree,
  assert_parity,
  assert_returned,
  named_shapes,
)
from vlx.inference import diffusion, guidance, samplers
from vlx.inference.diffusion import Level, Process
from vlx.inference.samplers import Sampler
from vlx.models.generation.autoencoder import KLAutoencoder
from vlx.models.layers.unet import UNet
from vlx.pretrained import diffusers, tables, unet

GROUPS = dict(groups=8)
ADM = dict(
  channels=6, width=32, multipliers=(1, 1), num_blocks=1, attention_at=(2,), head_dim=16, scale_shift=True,
  residual_resampling=True, num_classes=5, **GROUPS,
)
ORIGINAL_SD = dict(
  channels=4, width=32, multipliers=(1, 1), num_blocks=2, attention_at=(1,), num_heads=8, transformer_depth=1, **GROUPS
)


def loaded(recorded, network, rows, x, t, **given):
  wanted = jax.eval_shape(lambda rng: network.init(rng, x, t, **given), jax.random.key(0))
  found = tables.read(rows, wanted, recorded.shapes, recorded.weights.__getitem__, aliases=unet.DIFFUSERS_ALIASES)
  return as_tree(found, wanted)


CASES = {
  "ddpm": ("unet", diffusers.unet_2d, {}),
  "adm": ("unet", diffusers.unet_2d, {"label": "class_labels"}),
  "sd": ("unet_text", diffusers.unet_2d_condition, {"context": "encoder_hidden_states"}),
  "ldm": ("unet_text", diffusers.unet_2d_condition, {"context": "encoder_hidden_states"}),
  "sd2": ("unet_text", diffusers.unet_2d_condition, {"context": "encoder_hidden_states"}),
}


@pytest.mark.parametrize("case", CASES)
def test_unets_of_diffusers(case):
  file, network_of, names = CASES[case]
  recorded = Recorded(file, case)
  network = network_of(recorded.config)
  rows = unet.diffusers_rows(network, linear=case == "sd2")
  inputs = jax.tree.map(jnp.asarray, recorded.inputs)
  x, t = inputs["sample"], inputs["timestep"]
  given = {ours: inputs[theirs] for ours, theirs in names.items()}
  variables = loaded(recorded, network, rows, x, t, **given)
  assert_parity(jax.jit(network.apply)(variables, x, t, **given), recorded.outputs["sample"])
  whole = jax.tree.map(np.float16, variables)
  assert_returned(rows, whole, recorded.weights)


@pytest.mark.parametrize("case", ["adm", "adm_legacy", "sd"])
def test_unets_of_the_authors_code(case):
  recorded = Recorded("unet_original" if case == "sd" else "unet_adm", case)
  network = UNet(**ORIGINAL_SD if case == "sd" else ADM)
  rows = unet.original_rows(network, legacy=case == "adm_legacy")
  inputs = jax.tree.map(jnp.asarray, recorded.inputs)
  given = {"context": inputs["context"]} if case == "sd" else {"label": inputs["y"]}
  variables = loaded(recorded, network, rows, inputs["x"], inputs["timesteps"], **given)
  found = jax.jit(network.apply)(variables, inputs["x"], inputs["timesteps"], **given)
  assert_parity(found, recorded.outputs["sample"])


@pytest.mark.parametrize("case", ["kl", "kl16", "vq", "original"])
def test_autoencoders(case):
  if case == "original":
    recorded = Recorded("autoencoder_original", "kl")
    system = KLAutoencoder(image_size=16, latent_channels=4, width=32, multipliers=(1, 2), num_blocks=1, **GROUPS)
  else:
    recorded = Recorded("autoencoder", case)
    name = "VQModel" if case == "vq" else "AutoencoderKL"
    system = diffusers.autoencoder({**recorded.config, "_class_name": name})
  rows = unet.autoencoder_rows(system, diffusers=case != "original")
  wanted = contract.shapes(system)
  found = tables.read(rows, wanted, recorded.shapes, recorded.weights.__getitem__)
  variables = as_tree(found, wanted)
  for image in recorded.inputs:
    there = {
      name.removeprefix(f"{image}_"): x for name, x in recorded.outputs.items()
      if case == "original" or name.startswith(image)
    }
    x = jnp.asarray(recorded.inputs[image])
    if case == "vq":
      latents = system.encode_latents(variables, x, jax.random.key(0))
      assert_parity(latents, there["latents"])
      np.testing.assert_array_equal(system.image_to_tokens(variables, x), there["ids"])
    else:
      latents, log_variance = system.posterior(variables, x)
      assert_parity(latents, there["mean"])
      assert_parity(log_variance, there["logvar"])
    assert_parity(system.decode_latents(variables, latents), there["decoded"])
  assert_returned(rows, jax.tree.map(np.float16, variables), recorded.weights)
