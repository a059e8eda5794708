"""UNets, autoencoders and samplers against diffusers, and against the authors' code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vlx
from tests import contract
from tests.parity.recorded import PARITY, Recorded, as_tree, assert_parity, assert_returned
from vlx.inference import diffusion, guidance, samplers
from vlx.inference.diffusion import Level
from vlx.inference.samplers import Sampler
from vlx.models.generation.autoencoder import KLAutoencoder
from vlx.models.layers.unet import UNet
from vlx.pretrained import diffusers_configs, tables, unet

GROUPS = dict(groups=8)
ADM = dict(
  channels=6,
  width=32,
  multipliers=(1, 1),
  num_blocks=1,
  attention_at=(2,),
  head_dim=16,
  scale_shift=True,
  residual_resampling=True,
  num_classes=5,
  **GROUPS,
)
ORIGINAL_SD = dict(
  channels=4,
  width=32,
  multipliers=(1, 1),
  num_blocks=2,
  attention_at=(1,),
  num_heads=8,
  transformer_depth=1,
  **GROUPS,
)


def loaded(recorded, network, rows, x, t, **given):
  wanted = jax.eval_shape(lambda rng: network.init(rng, x, t, **given), jax.random.key(0))
  found = tables.read(
    rows, wanted, recorded.shapes, recorded.weights.__getitem__, aliases=unet.DIFFUSERS_ALIASES
  )
  return as_tree(found, wanted)


CASES = {
  "ddpm": ("unet", diffusers_configs.unet_2d, {}),
  "adm": ("unet", diffusers_configs.unet_2d, {"label": "class_labels"}),
  "sd": ("unet_text", diffusers_configs.unet_2d_condition, {"context": "encoder_hidden_states"}),
  "ldm": ("unet_text", diffusers_configs.unet_2d_condition, {"context": "encoder_hidden_states"}),
  "sd2": ("unet_text", diffusers_configs.unet_2d_condition, {"context": "encoder_hidden_states"}),
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
    system = KLAutoencoder(
      image_size=16, latent_channels=4, width=32, multipliers=(1, 2), num_blocks=1, **GROUPS
    )
  else:
    recorded = Recorded("autoencoder", case)
    name = "VQModel" if case == "vq" else "AutoencoderKL"
    system = diffusers_configs.autoencoder({**recorded.config, "_class_name": name})
  rows = unet.autoencoder_rows(system, diffusers=case != "original")
  wanted = contract.shapes(system)
  found = tables.read(rows, wanted, recorded.shapes, recorded.weights.__getitem__)
  variables = as_tree(found, wanted)
  for image in recorded.inputs:
    there = {
      name.removeprefix(f"{image}_"): x
      for name, x in recorded.outputs.items()
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


def mixture(means, std):
  """(x, level) → E[x₀ | x_t] of Gaussians around these means, equally many of each."""

  def x0_of(x, level):
    alpha, sigma = (jnp.asarray(v, jnp.float32).reshape(-1, 1, 1, 1, 1) for v in level)
    away = x[:, None] - alpha * means
    variance = (alpha * std) ** 2 + sigma**2
    share = jax.nn.softmax(-jnp.square(away).sum((2, 3, 4), keepdims=True) / (2 * variance), axis=1)
    return (share * (means + std**2 * alpha / variance * away)).sum(1)

  return x0_of


TRAJECTORIES = (
  "ddpm_small",
  "ddpm_large",
  "ddpm_small_free",
  "ddpm_large_free",
  "ddpm_learned",
  "ddpm_unet",
  "ddim",
  "ddim_noise",
  "ddim_zero_snr",
  "ddim_zero_snr_noise",
  "ddim_unet",
  "dpm",
  "dpm_leading",
  "dpm_v",
  "euler",
  "euler_leading",
)


@pytest.mark.parametrize("case", TRAJECTORIES)
def test_trajectories_of_diffusers(case, monkeypatch):
  recorded = Recorded("schedulers", case)
  config, inputs, expected = recorded.config, recorded.inputs, recorded.outputs
  process = diffusers_configs.process(config)
  sampler = Sampler(20, eta=float(inputs.get("eta", 0.0)), **diffusers_configs.sampler(config))
  plan = samplers.plan(process, sampler)
  np.testing.assert_allclose(plan.t, expected["timesteps"], atol=1e-3)
  np.testing.assert_allclose(plan.step.now.alpha**2, expected["signals"], rtol=2e-4, atol=1e-7)

  x0_of = mixture(inputs["means"], inputs["std"])
  ratio = process.levels.sigma[::-1] / np.maximum(process.levels.alpha[::-1], samplers.LEAST_ALPHA)

  def denoise(x, t):
    # Where Euler asks between two steps.
    between = jnp.interp(t, jnp.arange(process.timesteps), jnp.asarray(ratio[::-1], jnp.float32))
    alpha = 1 / jnp.sqrt(1 + between**2)
    level = (
      process.level(t.astype(jnp.int32)) if "euler" not in case else Level(alpha, between * alpha)
    )
    x0 = x0_of(x, level)
    answer = diffusion.target(process.prediction, x0, diffusion.eps_of(x, x0, level), level)
    if case.endswith("_unet"):
      answer += 0.1 * network.apply(variables, x, t)
    return jnp.concatenate([answer, jnp.sin(3 * x)], -1) if process.learned_variance else answer

  x = jnp.asarray(inputs["x"])
  if case.endswith("_unet"):
    small = Recorded("unet", "ddpm")
    network = diffusers_configs.unet_2d(small.config)
    variables = loaded(small, network, unet.diffusers_rows(network), x, jnp.zeros(2))
  if case == "euler":  # which starts with the noise of its first level alone
    x = x * plan.step.now.sigma[0]
  drawn = jnp.concatenate([x[None], inputs.get("noise", np.zeros((0, *x.shape), np.float32))])
  monkeypatch.setattr(
    samplers, "noise", lambda seeds, index, shape: drawn[jnp.minimum(index, len(drawn) - 1)]
  )
  run = lambda: samplers.sample(
    denoise, denoise, process, sampler, jnp.arange(2), x.shape[1:], film=True
  )
  found, film = jax.jit(run)()
  assert_trajectory(found, expected["samples"][-1])
  scale = np.ones(20) if "euler" not in case else plan.step.now.alpha
  for i in range(19):  # the last is the sample
    level = Level(plan.step.now.alpha[i], plan.step.now.sigma[i])
    x = jnp.asarray(expected["samples"][i] * scale[i], jnp.float32)
    there = diffusion.predict(process, jnp.asarray(expected["answers"][i]), x, level)
    there = guidance.threshold(there, x, level, sampler.threshold, 1.0)
    assert_trajectory(film[i], np.asarray(there.x0), 1e-3 if level.alpha < 0.1 else 1e-4)


def assert_trajectory(found, expected, tolerance=1e-4):
  np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def test_tables_of_diffusers():
  recorded = Recorded("schedulers", "tables")
  for name, config in recorded.config.items():
    process = diffusers_configs.process({**config, "prediction_type": "v_prediction"})
    np.testing.assert_allclose(
      process.betas, recorded.outputs[f"{name}/betas"], rtol=1e-4, atol=3e-7
    )
    np.testing.assert_allclose(
      process.levels.alpha**2, recorded.outputs[f"{name}/alphas_cumprod"], atol=1e-5
    )
  process = diffusers_configs.process(recorded.config["scaled_linear"])
  for key, expected in recorded.outputs.items():
    if key.count("/") == 3:
      kind, spacing, offset, steps = key.split("/")
      method = diffusers_configs.sampler({"_class_name": kind})["method"]
      sampler = Sampler(int(steps), method, spacing=spacing, offset=int(offset))
      np.testing.assert_allclose(
        samplers.plan(process, sampler).t, expected, atol=1e-3, err_msg=key
      )


def test_a_stable_diffusion_is_read_and_gives_its_images(monkeypatch):
  recorded = Recorded("pipeline", "stable_diffusion")
  model = vlx.load(PARITY / "stable_diffusion")
  text, mask = model.tokenizer.encode_batch(recorded.config["prompts"], model.system.text_length)
  inputs = {"text": jnp.asarray(text), "text_mask": jnp.asarray(mask)}
  for given, name in ((True, "told"), (False, "empty")):
    found = model.system._condition(model.variables, inputs, given)
    assert found.keys() == {"context"}
    assert_parity(found["context"], recorded.outputs[name])
  drawn = jnp.asarray(recorded.inputs["latents"])
  monkeypatch.setattr(samplers, "noise", lambda *_: drawn)
  sampler = Sampler(
    recorded.config["num_steps"],
    spacing="leading",
    offset=1,
    guidance_scale=recorded.config["guidance_scale"],
  )
  sample = jax.jit(lambda v: model.system.sample_images(v, inputs, jnp.arange(2), sampler))
  found = (sample(model.variables) + 1) / 2
  np.testing.assert_allclose(found.clip(0, 1), recorded.outputs["images"], atol=1e-4)
