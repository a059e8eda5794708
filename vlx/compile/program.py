"""Compiles the step of `vlx.train` for a topology and measures what came out. Runs in a process of
its own:

  python -m vlx.compile.program REQUESTED.json TOPOLOGY FOLDER

for compilers read their settings once, write to the terminal, and may crash. FOLDER/result.json is
the result, or has an `error` for the user. Nothing is executed and no array is made.
"""

import itertools
import json
import math
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

import jax

from vlx.compile import bundles, flops, hlo, topologies
from vlx.compile.plan import Plan
from vlx.core import config as configs
from vlx.core import system as systems
from vlx.core.errors import UserError
from vlx.train import loop
from vlx.train.state import ALL


def measure(config, topology: topologies.Topology, folder: pathlib.Path) -> dict:
  """The facts that `vlx.compile --json` prints; `folder` takes the compiler's dumps.

  `temporaries` are what `total` holds beside the arguments: activations, gradients, the program
  itself.
  """
  counted = _count(config)
  dump = folder / "kernels"
  if topology.is_tpu and counted.has_kernels:
    # Before libtpu is loaded. Without kernels nobody reads the dump, which is large.
    os.environ["LIBTPU_INIT_ARGS"] = bundles.DUMP_FLAGS.format(dump)
  run = Plan(config, folder, tuple(topologies.devices(topology)))
  step, shapes = loop.compile_step(run), (run.state_shapes, run.frozen_shapes, run.batch_shapes)
  start = time.monotonic()
  with jax.set_mesh(run.mesh):  # only here: what is not traced would run on these devices
    compiled, needed = _compile(step.lower(*shapes))
  seconds = time.monotonic() - start
  sizes = _sizes(run)
  total, memory = needed or (_total(compiled, topology), topology.chip.memory)
  sizes |= dict(temporaries=total - sum(sizes.values()), total=total, memory=memory)
  peak = topology.chip.peak_flops
  text = compiled and compiled.as_text()
  return dict(
    topology=topology.name,
    devices=topology.devices,
    mesh=dict(run.mesh.shape),
    batch_size=run.streams.batch_size,
    fits=total <= memory,
    excess_bytes=max(0, total - memory),
    bytes_per_device=sizes,
    parameters=sum(math.prod(s.shape) for s in jax.tree.leaves(run.shapes["params"])),
    model_flops_per_step=counted.flops,
    kernel_flops_per_step=counted.kernels,
    loops_of_unknown_length=counted.unbounded_loops,
    peak_flops_per_device=peak,
    seconds_at_peak=peak and counted.flops / (topology.devices * peak),
    compile_seconds=round(seconds, 1),
    collectives=text and {k: vars(c) for k, c in sorted(hlo.collectives(text).items())},
    kernels=text and _kernels(text, dump),
  )


def _count(config) -> flops.Count:
  """The FLOPs of one step, all devices together; from shapes, without a mesh."""
  config = config.copy_and_resolve_references().unlock()
  config.mesh = dict(data=1, fsdp=1, tensor=1)
  run = Plan(config, pathlib.Path(), tuple(jax.devices("cpu")[:1]))
  parts = config.optim.accumulate
  total, moving = flops.Count(), run.state_shapes.variables

  for player in run.players:
    own = run.roles.params_of(player, moving["params"])
    named = {} if player == ALL else {"player": player}

    def loss(own, params, state, frozen, batch, step, named=named):
      learning = systems.unflatten({**systems.flatten(params), **systems.flatten(own)})
      variables = run.roles.merge({"params": learning, "state": state}, frozen)
      terms, aux = run.system.loss(
        variables,
        batch,
        jax.random.key(0),
        step=step,
        train=True,
        frozen=run.roles.subtrees,
        **named,
      )
      return systems.total(terms), aux

    part = jax.tree.map(
      lambda s: jax.ShapeDtypeStruct((s.shape[0] // parts, *s.shape[1:]), s.dtype), run.batch_shapes
    )
    plain = lambda tree: jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype), tree)
    arguments = (own, moving["params"], moving["state"], run.frozen_shapes)
    total.add(flops.count(loss, *map(plain, arguments), part, plain(run.state_shapes.step)), parts)
  return total


def _compile(lowered):
  """(the program, None), or (None, (bytes it needs, bytes there are)) where it does not fit."""
  try:
    return lowered.compile(), None
  except jax.errors.JaxRuntimeError as e:
    if sizes := out_of_memory(str(e)):
      return None, sizes
    raise


def out_of_memory(message: str) -> tuple[int, int] | None:
  """(bytes needed, bytes there are) on a TPU, of its compiler's error; None of other errors.

  "HLO temporaries" are all of the program's buffers, arguments and results among them.
  """
  amount = r"\(?([\d.]+)([KMGT])\)?"
  for pattern in ("Used {0} of {0} hbm", "HLO temporaries {0} exceeds available HBM {0}"):
    if match := re.search(pattern.format(amount), message):
      scale = {c: 1024**i for i, c in enumerate("KMGT", 1)}
      needed, memory = (
        int(float(n) * scale[c]) for n, c in (match.groups()[:2], match.groups()[2:])
      )
      return needed, memory
  return None


def _sizes(run: Plan) -> dict[str, int]:
  """Bytes on one device of what goes into the step."""

  def size(shapes):
    return sum(
      math.prod(s.sharding.shard_shape(s.shape)) * s.dtype.itemsize for s in jax.tree.leaves(shapes)
    )

  state = run.state_shapes
  other = (state.variables["state"], state.average, state.step, state.finite)
  arguments = (
    state.variables["params"],
    run.frozen_shapes,
    state.optimizer,
    other,
    run.batch_shapes,
  )
  return dict(
    zip(("parameters", "frozen", "optimizer", "other_state", "batch"), map(size, arguments))
  )


def _total(compiled, topology: topologies.Topology) -> int:
  """Bytes of everything on one device.

  On TPU the most that is alive at once, for its buffers take one another's place; elsewhere
  temporaries are one block. Donated arguments are written over, so they are not counted again as
  outputs.
  """
  memory = compiled.memory_analysis()
  if topology.is_tpu:
    return memory.peak_memory_in_bytes
  return (
    memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes
    + memory.temp_size_in_bytes
    + memory.generated_code_size_in_bytes
  )


def _kernels(text: str, dump: pathlib.Path) -> dict[str, dict]:
  """Runs and bundles of each kernel, by the first of its instructions; the compiler dumps one of
  equal ones.
  """
  kernels = hlo.kernels(text)
  figures = bundles.of_kernels(dump, itertools.chain.from_iterable(kernels))
  return {
    names[0]: {"runs": runs, **next((vars(figures[n]) for n in names if n in figures), {})}
    for names, runs in kernels.items()
  }


def in_own_process(config, topology: topologies.Topology) -> dict:
  """Runs `measure` in a process that has the topology's compiler.

  Raises:
    UserError: for what the user can mend.
    RuntimeError: where the compiler fails otherwise, with the end of what it wrote.
  """
  variables = topologies.environment(topology)
  with tempfile.TemporaryDirectory(prefix="vlx-compile-") as folder:
    path = pathlib.Path(folder)
    (path / "requested.json").write_text(configs.to_json(config), encoding="utf-8")
    command = [
      sys.executable,
      "-m",
      "vlx.compile.program",
      path / "requested.json",
      topology.name,
      path,
    ]
    done = subprocess.run(
      command, env={**os.environ, **variables}, capture_output=True, text=True, errors="replace"
    )
    if done.returncode:
      raise RuntimeError(f"the compiler ended with {done.returncode}:\n{done.stderr[-4000:]}")
    result = json.loads((path / "result.json").read_text())
  if "error" in result:
    raise UserError(result["error"])
  return result


def main(config_path: str, name: str, folder: str) -> None:
  config = configs.from_json(pathlib.Path(config_path).read_text())
  try:
    result = measure(config, topologies.parse(name), pathlib.Path(folder))
  except UserError as e:
    result = {"error": str(e)}
  (pathlib.Path(folder) / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
  main(*sys.argv[1:])
