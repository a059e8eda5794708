"""500 MB of safetensors placed on 8 virtual devices with fsdp = 8: the most that a device holds at
any moment.

  python -m benchmarks.placing

Makes the LLaMA folder of `benchmarks.load` and takes a run's variables from it. Meanwhile a thread
sums, every millisecond, the bytes of all arrays' shards on each device. Prints the most beside what
a device has at the end, its shard, and the largest tensor.
"""

import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import collections
import pathlib
import tempfile
import threading
import time

import jax
from absl import app

from benchmarks.load import CONFIGS, make
from vlx import pretrained
from vlx.compile.plan import Plan
from vlx.core import config as configs
from vlx.train import defaults, initialize


def held() -> collections.Counter:
  """Device → bytes of its shards of all arrays; a shard that was looked at is an array too, of
  the same buffer.
  """
  buffers = {}
  for array in jax.live_arrays():
    for shard in array.addressable_shards:
      buffers[shard.device, shard.data.unsafe_buffer_pointer()] = shard.data.nbytes
  found = collections.Counter()
  for (device, _), size in buffers.items():
    found[device] += size
  return found


def watch(over: threading.Event, most: collections.Counter) -> None:
  while not over.is_set():
    for device, size in held().items():
      most[device] = max(most[device], size)
    time.sleep(0.001)


def main(_):
  with tempfile.TemporaryDirectory() as folder:
    make(pathlib.Path(folder), CONFIGS["llama"])
    system = pretrained.open_checkpoint(folder).system
    config = defaults.get_config()
    section = configs.part_of(system)
    config.system, config.model = section.pop("system"), section
    config.init, config.mesh.fsdp = (dict(source=folder),), 8
    config.partition = ((r".*", "fsdp"),)
    run = Plan(configs.finalize(config), pathlib.Path(folder), tuple(jax.devices()))
    over, most = threading.Event(), collections.Counter()
    watcher = threading.Thread(target=watch, args=(over, most))
    watcher.start()
    arrays = initialize.variables(run.system, run.config, run.variable_shapes, jax.random.key(0))
    jax.block_until_ready(arrays)
    over.set()
    watcher.join()
  shard, largest = max(held().values()), max(x.nbytes for x in arrays.values())
  print(
    f"{sum(x.nbytes for x in arrays.values()) / 1e6:.0f} MB in all, {shard / 1e6:.1f} MB on a device at the end; at most "
    f"{max(most.values()) / 1e6:.1f} MB at any moment; the largest tensor has {largest / 1e6:.1f} MB"
  )


if __name__ == "__main__":
  app.run(main)
