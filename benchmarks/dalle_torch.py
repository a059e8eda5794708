"""The same as `benchmarks.dalle` by dalle-pytorch, cached: `python benchmarks/dalle_torch.py
[RUNS]`.

    pip install torch==2.13.0 einops axial-positional-embedding==0.3.12 rotary-embedding-torch==0.9.1
    pip install --no-deps dalle-pytorch==1.6.6

Learned positions and full attention, with which it is quickest: its other masks have no cache. Its
MLP is gated, of 1,024, and so has as many weights as an ungated one of 1,536.
"""

import importlib.util
import statistics
import sys
import time
import types

import torch

TEXT, SIDE, ROWS, CODES, WORDS = 64, 16, 8, 1024, 4000


def dalle_module():
  """`dalle_pytorch.dalle_pytorch` alone: the package's start wants what no transformer needs."""
  package = types.ModuleType("dalle_pytorch")
  package.__path__ = importlib.util.find_spec("dalle_pytorch").submodule_search_locations
  others = types.ModuleType("dalle_pytorch.vae")
  others.OpenAIDiscreteVAE = others.VQGanVAE = type("Absent", (), {})
  sys.modules |= {"dalle_pytorch": package, "dalle_pytorch.vae": others}
  return importlib.import_module("dalle_pytorch.dalle_pytorch")


def timed(function, count):
  times = []
  for _ in range(count + 1):
    start = time.perf_counter()
    result = function()
    times.append(time.perf_counter() - start)
  return result, statistics.median(times[1:])


def main():
  count = int(sys.argv[1]) if len(sys.argv) > 1 else 5
  torch.manual_seed(0)
  module = dalle_module()
  vae = module.DiscreteVAE(
    image_size=4 * SIDE, num_layers=2, num_tokens=CODES, codebook_dim=8, hidden_dim=8
  )
  vae.decode = lambda ids: ids
  model = module.DALLE(
    dim=256,
    vae=vae,
    num_text_tokens=WORDS,
    text_seq_len=TEXT,
    depth=8,
    heads=4,
    dim_head=64,
    attn_types=("full",),
    shift_tokens=False,
    rotary_emb=False,
  )
  text, codes = torch.randint(2, WORDS, (ROWS, TEXT)), torch.randint(0, CODES, (ROWS, SIDE**2))
  optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 4.5e-4)

  def step():
    optimizer.zero_grad()
    loss = model(text, codes, return_loss=True)
    loss.backward()
    optimizer.step()
    return loss.item()

  loss, seconds = timed(step, count)
  print(f"training step {1000 * seconds:.0f} ms, loss {loss:.2f}", flush=True)
  # The likelier half of the codes, with the few text tokens that its share of all tokens leaves.
  share = 1 - CODES / 2 / model.total_tokens
  ids, seconds = timed(
    lambda: model.generate_images(text, filter_thres=share, use_cache=True), count
  )
  print(f"sampling {ids.numel() / seconds:.0f} codes/s", flush=True)


if __name__ == "__main__":
  main()
