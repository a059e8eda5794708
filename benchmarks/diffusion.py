"""Diffusion's networks on this machine: seconds of a training step and of 50 guided DDIM steps.

  python -m benchmarks.diffusion [--part=pixels|latents|sampling]
  python -P benchmarks/diffusion_torch.py [PART]

`pixels` is DDPM's UNet of CIFAR-10 (35.7M parameters), 32 images of 32x32 a step; `latents` Stable Diffusion's form at
64 channels (37.5M parameters; 8 latents of 32x32, texts of 77 tokens of 768), which `sampling` takes too: 2 images, guidance 7.5.
AdamW, f32. Prints medians.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from benchmarks.dalle import timed
from vlx import cli
from vlx.core import config as configs
from vlx.core import system as systems
from vlx.inference.diffusion import Process
from vlx.inference.samplers import Sampler
from vlx.models.generation.latent_diffusion import LatentDiffusion
from vlx.models.layers.unet import UNet
from vlx.train import defaults
from vlx.train import step as steps

RUNS = flags.DEFINE_integer("runs", 5, "Runs of each to time.")
PART = flags.DEFINE_enum("part", "", ("", "pixels", "latents", "sampling"), "One of them alone.")
SIDE, WORDS, WIDTH = 32, 77, 768
LATENTS = UNet(
  channels=4,
  width=64,
  multipliers=(1, 2, 4, 4),
  attention_at=(1, 2, 4),
  num_heads=8,
  transformer_depth=1,
)


@dataclasses.dataclass(frozen=True)
class Encoded:
  """The autoencoder that images have already gone through: three channels and the first again."""

  def init(self, rng):
    del rng
    return {"params": {}, "state": {}}

  def encode_latents(self, v, image, rng):
    del v, rng
    return jnp.concatenate([image, image[..., :1]], axis=-1)

  def decode_latents(self, v, latents):
    del v
    return latents[..., :3]


@dataclasses.dataclass(frozen=True)
class Told(Encoded):
  """The text encoder of words that are waves."""

  text_length: int = WORDS
  vocab_size: int = 1000

  def encode_text(self, v, text, text_mask):
    del v, text_mask
    return jnp.sin(text[..., None] * jnp.arange(1.0, 1 + WIDTH))


def train(part: str, system, rows: int) -> None:
  rng = np.random.default_rng(0)
  batch = {"image": rng.normal(size=(rows, SIDE, SIDE, 3)).astype(np.float32)}
  if part == "latents":
    batch["text"] = rng.integers(0, 1000, (rows, WORDS)).astype(np.int32)
    batch["text_mask"] = np.ones((rows, WORDS), bool)
  batch = jax.device_put(batch)
  optim = defaults.get_config().optim
  optim.update(dict(lr=2e-4, clip_norm=0.0))
  state, frozen, train_step = steps.begin(system, optim)
  carried = [state]

  def step():
    carried[0], metrics = train_step(carried[0], frozen, batch)
    return carried[0], metrics

  (state, _), seconds = timed(step, RUNS.value)
  count = sum(x.size for x in jax.tree.leaves(state.variables["params"]))
  print(f"{part} training step of {count:,} parameters {seconds:.2f} s", flush=True)


def sample(system: LatentDiffusion) -> None:
  variables = jax.jit(lambda rng: systems.init(system, rng))(jax.random.key(0))
  text = jax.random.randint(jax.random.key(0), (2, WORDS), 0, 1000)
  inputs = {"text": text, "text_mask": jnp.ones_like(text, bool)}
  how = Sampler(50, spacing="leading", offset=1, guidance_scale=7.5)
  run = jax.jit(lambda v, inputs, seeds: system.sample_images(v, inputs, seeds, how))
  _, seconds = timed(lambda: run(variables, inputs, jnp.arange(2)), RUNS.value)
  print(f"sampling by 50 guided DDIM steps {seconds:.2f} s", flush=True)


def main(_):
  cli.keep_freed_memory()  # as every vlx command does
  latents = LatentDiffusion(
    unet=LATENTS,
    image_size=SIDE,
    process=Process("scaled_linear", beta_start=0.00085, beta_end=0.012, ends_clean=False),
    autoencoder=Encoded(),
    text_encoder=Told(),
    text_length=WORDS,
    empty_text=(0,) * WORDS,
    latent_scale=1.0,
  )
  if PART.value in ("", "pixels"):
    system = configs.build_system(configs.load_config("configs/ddpm.py:paper"))
    train("pixels", system, 32)
  if PART.value in ("", "latents"):
    train("latents", latents, 8)
  if PART.value in ("", "sampling"):
    sample(latents)


if __name__ == "__main__":
  app.run(main)
