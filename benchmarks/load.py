"""Loading 500 MB of safetensors: host memory and time, beside the file's size and the time of reading it.

  python -m benchmarks.load

Makes two Hugging Face folders of about 500 MB with random weights, a BERT and a LLaMA of such sizes, and reads each
in a process of its own: the bytes of the file into memory that is new, then all of `vlx.pretrained.load` three
times. Prints the best of three and the peak of the process's resident memory beyond what it had before, both
also as a ratio. The file is in the system's cache each time.
"""

import json
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np
from absl import app, flags

FOLDER = flags.DEFINE_string("folder", None, "Read this one, and print its figures as JSON.")
SIZES = dict(hidden_size=768, num_attention_heads=12, max_position_embeddings=512, vocab_size=30522)
CONFIGS = {
    "bert": dict(SIZES, model_type="bert", architectures=["BertForPreTraining"], hidden_act="gelu",
                 num_hidden_layers=14, intermediate_size=3072),
    "llama": dict(SIZES, model_type="llama", hidden_act="silu", num_hidden_layers=11, intermediate_size=2048,
                  rms_norm_eps=1e-5, num_key_value_heads=12),
}


def make(folder: pathlib.Path, config: dict) -> None:
  from vlx.pretrained import tables
  from vlx.pretrained.formats.safetensors import write_safetensors
  from vlx.pretrained.load import FAMILIES, family, variable_shapes

  layout = family(FAMILIES[config["model_type"]]).from_hugging_face(config)
  shapes = tables.public_shapes(layout.rows, variable_shapes(layout.system))
  rng = np.random.default_rng(0)
  write_safetensors(
      folder / "model.safetensors", shapes,
      ((name, rng.standard_normal(shape, np.float32)) for name, shape in shapes.items()),
  )
  (folder / "config.json").write_text(json.dumps(config))


def resident(what: str) -> int:
  """Bytes by the kernel's account: "VmRSS" now, "VmHWM" at most so far."""
  status = pathlib.Path("/proc/self/status").read_text()
  return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith(what)))


def timed(function) -> float:
  times = []
  for _ in range(3):
    start = time.perf_counter()
    result = function()
    times.append(time.perf_counter() - start)
    del result
  return min(times)


def measure(folder: pathlib.Path) -> dict[str, float]:
  import jax

  from vlx import pretrained

  jax.devices()
  before = resident("VmRSS")
  jax.block_until_ready(pretrained.load(folder).variables)
  peak = resident("VmHWM") - before
  file = folder / "model.safetensors"
  reading = timed(lambda: np.fromfile(file, np.uint8))
  loading = timed(lambda: jax.block_until_ready(pretrained.load(folder).variables))
  return dict(size=file.stat().st_size, peak=peak, reading=reading, loading=loading)


def main(_):
  if FOLDER.value:
    print(json.dumps(measure(pathlib.Path(FOLDER.value))))
    return
  for name, config in CONFIGS.items():
    with tempfile.TemporaryDirectory() as folder:
      make(pathlib.Path(folder), config)
      out = subprocess.run(
          [sys.executable, "-m", "benchmarks.load", f"--folder={folder}"], check=True, stdout=subprocess.PIPE
      ).stdout
    x = json.loads(out)
    print(
        f"{name}: {x['size'] / 1e6:.0f} MB, peak {x['peak'] / 1e6:.0f} MB ({x['peak'] / x['size']:.2f} x);"
        f" reading {x['reading']:.2f} s, loading {x['loading']:.2f} s ({x['loading'] / x['reading']:.2f} x)"
    )


if __name__ == "__main__":
  app.run(main)
