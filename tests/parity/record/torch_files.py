"""Records what torch writes: `torch.save` in both of its formats, of tensors that share, turn and
skip their storage; `torch.jit.save` of a module; and the LLaMA of `llama.safetensors` in two of
Meta's shards.

    pip install torch==2.13.0 numpy safetensors
    python tests/parity/record/torch_files.py
"""

import collections
import pathlib

import numpy as np
import torch
from safetensors.torch import load_file

PARITY = pathlib.Path(__file__).resolve().parents[1]


def state() -> dict[str, torch.Tensor]:
  base = torch.arange(24, dtype=torch.float32).reshape(4, 6) / 7
  return collections.OrderedDict(
    whole=base,
    turned=base.T,
    part=base[1:3, ::2],
    scalar=torch.tensor(1.5),
    empty=torch.zeros(0, 3),
    half=base.half(),
    brain=base.bfloat16(),
    count=torch.tensor([3, -4]),
    flags=base > 1,
    parameter=torch.nn.Parameter(base + 1),
  )


class Module(torch.nn.Module):
  """As OpenAI's CLIPs: weights, and a constant that is kept as a buffer."""

  def __init__(self):
    super().__init__()
    self.inner = torch.nn.Linear(3, 2)
    self.register_buffer("size", torch.tensor(224))

  def forward(self, x):
    return self.inner(x)


def shards(count: int) -> list[dict[str, torch.Tensor]]:
  """Rows or columns of the matrices as Meta deals them out (vlx/pretrained/llama.py); norms are
  whole in each.
  """
  case = {
    name.removeprefix("meta/weights/"): x
    for name, x in load_file(PARITY / "llama.safetensors").items()
    if name.startswith("meta/weights/")
  }
  columns = ("tok_embeddings", "attention.wo", "feed_forward.w2")

  def part(name, x, i):
    return (
      x if x.ndim == 1 else x.chunk(count, 1 if any(c in name for c in columns) else 0)[i].clone()
    )

  return [{name: part(name, x, i) for name, x in case.items()} for i in range(count)]


if __name__ == "__main__":
  torch.manual_seed(0)
  module = torch.jit.script(Module())
  torch.jit.save(module, PARITY / "torch_script.pt")
  np.savez(
    PARITY / "torch_script.npz", **{n: x.detach().numpy() for n, x in module.state_dict().items()}
  )
  for i, shard in enumerate(shards(2)):
    torch.save(shard, PARITY / f"llama_meta.{i:02}.pth")
  found = state()
  for name, zipped in (("zip", True), ("legacy", False)):
    checkpoint = {"state_dict": found, "epoch": 3, "lr": 0.1, "names": ["a", "b"]}
    torch.save(checkpoint, PARITY / f"torch_{name}.pth", _use_new_zipfile_serialization=zipped)
  np.savez(
    PARITY / "torch_values.npz",
    **{
      name: x.detach().float().numpy() if x.is_floating_point() else x.numpy()
      for name, x in found.items()
    },
  )
