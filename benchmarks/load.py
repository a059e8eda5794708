"""Loading 500 MB of safetensors: host memory and time, beside the file's size and the time of
reading it.

  python -m benchmarks.load

Makes two Hugging Face folders of about 500 MB with random weights, a BERT and a LLaMA of such
sizes, and reads each in a process of its own, once from the disk and once from the system's cache,
in turn: the bytes of the file by `Path.read_bytes`; by `numpy.fromfile`, whose memory comes in
pages of 2 MB where the system has them; and all of `vlx.pretrained.load`. Prints medians of seven,
and the peak of the process's resident memory beyond what it had before, all also as ratios.
"""

import json
import os
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
  "bert": dict(
    SIZES,
    model_type="bert",
    architectures=["BertForPreTraining"],
    hidden_act="gelu",
    num_hidden_layers=14,
    intermediate_size=3072,
  ),
  "llama": dict(
    SIZES,
    model_type="llama",
    hidden_act="silu",
    num_hidden_layers=11,
    intermediate_size=2048,
    rms_norm_eps=1e-5,
    num_key_value_heads=12,
  ),
}


def make(folder: pathlib.Path, config: dict) -> None:
  from vlx.pretrained import tables
  from vlx.pretrained.formats.safetensors import write_safetensors
  from vlx.pretrained.load import module, variable_shapes

  layout = module(config["model_type"]).from_hugging_face(config)
  shapes = tables.public_shapes(layout.rows, variable_shapes(layout.system))
  rng = np.random.default_rng(0)
  write_safetensors(
    folder / "model.safetensors",
    shapes,
    ((name, rng.standard_normal(shape, np.float32)) for name, shape in shapes.items()),
  )
  (folder / "config.json").write_text(json.dumps(config))


def resident(what: str) -> int:
  """Bytes by the kernel's account: "VmRSS" now, "VmHWM" at most so far."""
  status = pathlib.Path("/proc/self/status").read_text()
  return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith(what)))


def forget(file: pathlib.Path) -> None:
  """Takes the file out of the system's cache."""
  with open(file, "rb") as f:
    os.fsync(f.fileno())
    os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def seconds(function) -> float:
  start = time.perf_counter()
  result = function()
  found = time.perf_counter() - start
  del result
  return found


def measure(folder: pathlib.Path) -> dict[str, float]:
  import jax

  from vlx import pretrained

  jax.devices()
  file = folder / "model.safetensors"
  ways = {
    "read_bytes": file.read_bytes,
    "fromfile": lambda: np.fromfile(file, np.uint8),
    "load": lambda: jax.block_until_ready(pretrained.load(folder).variables),
  }
  before = resident("VmRSS")
  seconds(ways["load"])
  found = dict(size=file.stat().st_size, peak=resident("VmHWM") - before)
  for state, prepare in (("cached", lambda: None), ("disk", lambda: forget(file))):
    times = {name: [] for name in ways}
    for _ in range(7):
      for name, function in ways.items():
        prepare()
        times[name].append(seconds(function))
    found[state] = {name: float(np.median(x)) for name, x in times.items()}
  return found


def main(_):
  if FOLDER.value:
    print(json.dumps(measure(pathlib.Path(FOLDER.value))))
    return
  for name, config in CONFIGS.items():
    with tempfile.TemporaryDirectory() as folder:
      make(pathlib.Path(folder), config)
      out = subprocess.run(
        [sys.executable, "-m", "benchmarks.load", f"--folder={folder}"],
        check=True,
        stdout=subprocess.PIPE,
      ).stdout
    x = json.loads(out)
    print(
      f"{name}: {x['size'] / 1e6:.0f} MB, peak {x['peak'] / 1e6:.0f} MB ({x['peak'] / x['size']:.2f} x)"
    )
    for state in ("disk", "cached"):
      seconds_of = x[state]
      loading = seconds_of.pop("load")
      others = ", ".join(
        f"{name} {t:.2f} s ({loading / t:.2f} x)" for name, t in seconds_of.items()
      )
      print(f"  {state}: loading {loading:.2f} s; {others}")


if __name__ == "__main__":
  app.run(main)
