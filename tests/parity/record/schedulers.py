"""Records the trajectories of diffusers' schedulers, each sample and model's answer with the noise
that was drawn, and their tables.

The model is the best there is for data from a mixture of Gaussians (`inputs/means`, `inputs/std`). In
cases named `*_unet` a tenth of the answer of unet.safetensors' `ddpm` is added to it: alone, with
weights of no training, that one's trajectories take the last digit's error to the fifth.

    pip install torch==2.13.0 torchvision==0.28.0 transformers==5.23.0 diffusers==0.42.1 \
                safetensors accelerate
    python tests/parity/record/schedulers.py
"""

import sys
from unittest import mock

import torch
from common import PARITY, save
from diffusers import (
  DDIMScheduler,
  DDPMScheduler,
  DPMSolverMultistepScheduler,
  EulerDiscreteScheduler,
  UNet2DModel,
)
from safetensors.torch import load_file
from unet import IMAGES

STEPS = 20
SHAPE = (2, 3, 4, 8)
STD = 0.25
LATENTS = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
STABLE_DIFFUSION = dict(LATENTS, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
ZERO_SNR = dict(
  LATENTS,
  clip_sample=False,
  prediction_type="v_prediction",
  rescale_betas_zero_snr=True,
  timestep_spacing="trailing",
)
COSINE = dict(beta_schedule="squaredcos_cap_v2")
# name → (class, its options, η). Where the first step comes from nothing but noise and η = 1, what
# is left for the predicted noise is the root of a difference that rounding makes: not recorded.
CASES = {
  "ddpm_small": (DDPMScheduler, dict(variance_type="fixed_small"), None),
  "ddpm_large": (DDPMScheduler, dict(variance_type="fixed_large"), None),
  "ddpm_small_free": (DDPMScheduler, dict(variance_type="fixed_small", clip_sample=False), None),
  "ddpm_large_free": (DDPMScheduler, dict(variance_type="fixed_large", clip_sample=False), None),
  "ddpm_learned": (DDPMScheduler, dict(COSINE, variance_type="learned_range"), None),
  "ddpm_unet": (DDPMScheduler, dict(variance_type="fixed_large"), None),
  "ddim": (DDIMScheduler, STABLE_DIFFUSION, 0.0),
  "ddim_noise": (DDIMScheduler, STABLE_DIFFUSION, 1.0),
  "ddim_zero_snr": (DDIMScheduler, ZERO_SNR, 0.0),
  "ddim_zero_snr_noise": (DDIMScheduler, ZERO_SNR, 0.5),
  "ddim_unet": (DDIMScheduler, dict(clip_sample=False), 0.0),
  "dpm": (DPMSolverMultistepScheduler, LATENTS, None),
  "dpm_leading": (
    DPMSolverMultistepScheduler,
    dict(LATENTS, timestep_spacing="leading", steps_offset=1),
    None,
  ),
  "dpm_v": (DPMSolverMultistepScheduler, dict(LATENTS, prediction_type="v_prediction"), None),
  "euler": (EulerDiscreteScheduler, LATENTS, None),
  "euler_leading": (
    EulerDiscreteScheduler,
    dict(LATENTS, timestep_spacing="leading", steps_offset=1),
    None,
  ),
}
TABLES = {
  "linear": dict(beta_schedule="linear", beta_start=0.0001, beta_end=0.02),
  "scaled_linear": LATENTS,
  "squaredcos_cap_v2": COSINE,
  "scaled_linear_zero_snr": dict(LATENTS, rescale_betas_zero_snr=True),
}


class Mixture:
  """What is to be expected of a sample, if the data are of three Gaussians, equally many of each."""

  def __init__(self, generator: torch.Generator, prediction: str, variance: bool):
    self.means = torch.rand((3, *SHAPE[1:]), generator=generator) * 1.8 - 0.9
    self.prediction, self.variance = prediction, variance

  def __call__(self, x, t, signal):
    """`signal` is the share of the data in the variance, ᾱ."""
    a, b = signal.sqrt(), (1 - signal).sqrt()
    away = x[:, None] - a * self.means
    variance = signal * STD**2 + 1 - signal
    of_each = torch.softmax(-away.square().sum((2, 3, 4)) / (2 * variance), 1)
    of_each = of_each[:, :, None, None, None]
    x0 = (of_each * (self.means + STD**2 * a / variance * away)).sum(1)
    noise = (x - a * x0) / b
    answer = noise if self.prediction == "epsilon" else a * noise - b * x0
    return torch.cat([answer, torch.sin(3 * x)], 1) if self.variance else answer


def with_unet(mixture: Mixture):
  """A tenth of the recorded one's answer on top."""
  weights = load_file(PARITY / "unet.safetensors")
  of = "ddpm/weights/"
  model = UNet2DModel(**IMAGES["ddpm"]).eval()
  model.load_state_dict({k[len(of) :]: x.float() for k, x in weights.items() if k.startswith(of)})
  return lambda x, t, signal: mixture(x, t, signal) + 0.1 * model(x, t).sample


def signal(scheduler, i: int) -> torch.Tensor:
  if hasattr(scheduler, "sigmas"):
    return 1 / (1 + scheduler.sigmas[i] ** 2)
  return scheduler.alphas_cumprod[scheduler.timesteps[i]]


@torch.no_grad()
def trajectory(scheduler, model, x, noise, options: dict) -> dict:
  """The samples from first to last, the model's answers between, and how many draws were used."""
  draws = iter(noise)
  scheduler.set_timesteps(STEPS)
  signals = torch.stack([signal(scheduler, i) for i in range(STEPS)])
  samples, answers = [x * scheduler.init_noise_sigma], []
  module = sys.modules[type(scheduler).__module__]
  with mock.patch.object(module, "randn_tensor", lambda *_, **__: next(draws)):
    for i, t in enumerate(scheduler.timesteps):
      answers.append(model(scheduler.scale_model_input(samples[-1], t), t, signals[i]))
      samples.append(scheduler.step(answers[-1], t, samples[-1], **options).prev_sample)
  last = lambda tensors: torch.stack(tensors).movedim(-3, -1)
  return dict(
    samples=last(samples),
    answers=last(answers),
    signals=signals,
    timesteps=scheduler.timesteps.clone(),
    draws=torch.tensor(STEPS - len(list(draws))),
  )


def record(name: str, kind, config: dict, eta: float | None, seed: int) -> dict:
  generator = torch.Generator().manual_seed(seed)
  scheduler = kind(**config)
  x = torch.randn(SHAPE, generator=generator)
  noise = torch.randn((STEPS, *SHAPE), generator=generator)
  learned = scheduler.config.get("variance_type") == "learned_range"
  mixture = Mixture(generator, scheduler.config.prediction_type, learned)
  model = with_unet(mixture) if name.endswith("_unet") else mixture
  options = {} if eta is None else dict(eta=eta)
  outputs = trajectory(scheduler, model, x, noise, options)
  last = lambda tensor: tensor.movedim(-3, -1)
  inputs = dict(x=last(x), means=last(mixture.means), std=torch.tensor(STD))
  if draws := outputs.pop("draws"):
    inputs["noise"] = last(noise[:draws])
  if eta is not None:
    inputs["eta"] = torch.tensor(eta)
  config = {k: v for k, v in scheduler.config.items() if not k.startswith("_")}
  return dict(config=dict(config, _class_name=kind.__name__), inputs=inputs, outputs=outputs)


def record_tables() -> dict:
  """Betas and their products, and timesteps as CLASS/SPACING/OFFSET/STEPS."""
  outputs = {}
  for name, config in TABLES.items():
    scheduler = DDPMScheduler(**config)
    outputs |= {
      f"{name}/betas": scheduler.betas,
      f"{name}/alphas_cumprod": scheduler.alphas_cumprod,
    }
  for kind in (DDPMScheduler, DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler):
    for spacing, offset in (("leading", 0), ("leading", 1), ("linspace", 0), ("trailing", 0)):
      for steps in (10, 20, 50):
        scheduler = kind(**LATENTS, timestep_spacing=spacing, steps_offset=offset)
        scheduler.set_timesteps(steps)
        outputs[f"{kind.__name__}/{spacing}/{offset}/{steps}"] = scheduler.timesteps
  return dict(config=TABLES, outputs=outputs)


if __name__ == "__main__":
  torch.set_num_threads(1)
  cases = {name: record(name, *case, seed) for seed, (name, case) in enumerate(CASES.items())}
  save("schedulers", cases | {"tables": record_tables()}, ("diffusers",))
