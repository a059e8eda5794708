"""Runs folders that `vlx.convert` wrote for Hugging Face: `inputs.safetensors` in them →
`outputs.safetensors`.

    python tests/parity/record/exported.py FOLDER…

tests/parity/test_exported.py calls it.
"""

import json
import pathlib
import sys

import torch
import transformers
from safetensors.torch import load_file, save_file


def run(folder: pathlib.Path) -> None:
  (kind,) = json.loads((folder / "config.json").read_text())["architectures"]
  model, told = getattr(transformers, kind).from_pretrained(
    folder, output_loading_info=True, attn_implementation="eager"
  )
  if any(told.values()):
    sys.exit(f"{folder}: {told}")
  with torch.no_grad():
    found = model.eval()(**load_file(folder / "inputs.safetensors"))
  outputs = {name: x.contiguous() for name, x in found.items() if torch.is_tensor(x)}
  save_file(outputs, folder / "outputs.safetensors")


if __name__ == "__main__":
  print(f"torch {torch.__version__}, transformers {transformers.__version__}")
  for name in sys.argv[1:]:
    run(pathlib.Path(name))
