"""The same as `benchmarks.diffusion` by diffusers: `python -P benchmarks/diffusion_torch.py [PART [RUNS]]`, for it imports a
package that is called as a file here.

pip install torch==2.13.0 diffusers==0.42.1 transformers==5.23.0
"""

import statistics
import sys
import time

import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DConditionModel, UNet2DModel

SIDE, WORDS, WIDTH = 32, 77, 768


def timed(function, count):
  times = []
  for _ in range(count + 1):
    start = time.perf_counter()
    function()
    times.append(time.perf_counter() - start)
  return statistics.median(times[1:])


def pixels():
  return UNet2DModel(
    sample_size=32,
    attention_head_dim=None,
    downsample_padding=0,
    flip_sin_to_cos=False,
    freq_shift=1,
    layers_per_block=2,
    norm_eps=1e-6,
    block_out_channels=(128, 256, 256, 256),
    down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    dropout=0.1,
  )


def latents():
  return UNet2DConditionModel(
    sample_size=SIDE, block_out_channels=(64, 128, 256, 256), cross_attention_dim=WIDTH
  )


def train(name, model, shape, count, context=None):
  optimizer = torch.optim.AdamW(model.parameters(), 2e-4)
  scheduler, x0 = DDPMScheduler(), torch.randn(shape)

  def step():
    optimizer.zero_grad()
    noise, t = torch.randn_like(x0), torch.randint(0, 1000, (len(x0),))
    x = scheduler.add_noise(x0, noise, t)
    given = {} if context is None else {"encoder_hidden_states": context}
    torch.nn.functional.mse_loss(model(x, t, **given).sample, noise).backward()
    optimizer.step()

  seconds = timed(step, count)
  parameters = sum(x.numel() for x in model.parameters())
  print(f"{name} training step of {parameters:,} parameters {seconds:.2f} s", flush=True)


def sample(count):
  model = latents().eval()
  scheduler = DDIMScheduler(
    beta_schedule="scaled_linear",
    beta_start=0.00085,
    beta_end=0.012,
    clip_sample=False,
    set_alpha_to_one=False,
    steps_offset=1,
  )
  context = torch.randn(4, WORDS, WIDTH)

  @torch.no_grad()
  def run():
    scheduler.set_timesteps(50)
    x = torch.randn(2, 4, SIDE, SIDE)
    for t in scheduler.timesteps:
      nothing, told = model(torch.cat([x, x]), t, encoder_hidden_states=context).sample.chunk(2)
      x = scheduler.step(nothing + 7.5 * (told - nothing), t, x).prev_sample

  print(f"sampling by 50 guided DDIM steps {timed(run, count):.2f} s", flush=True)


def main():
  part = sys.argv[1] if len(sys.argv) > 1 else ""
  count = int(sys.argv[2]) if len(sys.argv) > 2 else 5
  torch.manual_seed(0)
  if part in ("", "pixels"):
    train("pixels", pixels().train(), (32, 3, 32, 32), count)
  if part in ("", "latents"):
    train("latents", latents().train(), (8, 4, SIDE, SIDE), count, torch.randn(8, WORDS, WIDTH))
  if part in ("", "sampling"):
    sample(count)


if __name__ == "__main__":
  main()
