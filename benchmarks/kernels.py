"""The TPU attention kernels in bundles of the compiler's final code, beside JAX's splash_attention.

  python -m benchmarks.kernels [--chips=v4,v5e,v5p,v6e] [--head_dims=64,128]

Causal, bf16, tiles of 512 x 512, splash with compute blocks as large as its tiles (smaller ones
cost it more). No TPU is needed: `make test-all` installs the compiler. `hot` is from the first to
the last bundle that uses a matrix unit: the work on one tile, which both sides mask whether the
tile needs it or not; one bundle is one cycle where nothing waits. `rest` are the other bundles:
most run once per row of tiles (ours turn operands there). Five minutes on two cores.
"""

import os
import pathlib
import subprocess
import sys
import tempfile

from absl import app, flags

from vlx.compile import bundles, topologies

CHIPS = flags.DEFINE_list("chips", ["v4", "v5e", "v5p", "v6e"], "Kinds of TPU.")
HEAD_DIMS = flags.DEFINE_list("head_dims", ["64", "128"], "Head dims.")

TOPOLOGIES = {"v4": "v4:2x2x1", "v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
TILE, LENGTH, HEADS = 512, 8192, 16
# (kernel, its name in the compiler's dump, that of splash's)
KERNELS = (
  ("forward", "attention_forward", "splash_mha_fwd"),
  ("dq", "attention_dq", "splash_mha_dq"),
  ("dkv", "attention_dkv", "splash_mha_dkv"),
)


def measure(chip: str, head_dim: int) -> dict[str, tuple[bundles.Bundles, bundles.Bundles]]:
  """By kernel: ours, splash's."""
  topology = topologies.parse(TOPOLOGIES[chip])
  with tempfile.TemporaryDirectory() as dump:
    environment = (
      os.environ
      | topologies.environment(topology)
      | {"LIBTPU_INIT_ARGS": bundles.DUMP_FLAGS.format(dump), "TPU_STDERR_LOG_LEVEL": "3"}
    )
    call = f"kernels.compile_all({topology.name!r}, {head_dim})"
    # libtpu reads its flags once, so each is a process of its own; it warns much where no TPU is.
    child = subprocess.run(
      [sys.executable, "-c", f"from benchmarks import kernels; {call}"],
      env=environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    if child.returncode:
      raise RuntimeError(f"{call} failed:\n{child.stdout[-3000:]}")
    return {
      kernel: tuple(_only(pathlib.Path(dump), name) for name in names) for kernel, *names in KERNELS
    }


def _only(dump, name):
  (path,) = dump.glob(f"*-{name}*-final_hlo-static-per-bundle-utilization.txt")
  return bundles.read(path)


def compile_all(topology: str, head_dim: int):
  """Both sides' kernels, for shapes."""
  import jax
  import jax.numpy as jnp
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_masks
  from jax.sharding import SingleDeviceSharding

  from vlx.ops import attention_tpu, masks

  sharding = SingleDeviceSharding(topologies.devices(topologies.parse(topology))[0])

  def shape(*sizes, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(sizes, dtype, sharding=sharding)

  array, rows = shape(1, LENGTH, HEADS, head_dim), shape(1, HEADS, LENGTH, dtype=jnp.float32)
  mask, scale, blocks = masks.Causal(), head_dim**-0.5, (TILE, TILE)

  def ours(q, k, v, d_out, lse, delta):
    forward = attention_tpu.forward(q, k, v, mask, scale, blocks=blocks)
    return forward, attention_tpu.backward(q, k, v, d_out, lse, delta, mask, scale, blocks=blocks)

  sizes = splash.BlockSizes(
    **{
      f"block_{name}": TILE
      for name in ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
    }
  )
  causal = splash_masks.MultiHeadMask([splash_masks.CausalMask((LENGTH, LENGTH))] * HEADS)

  def theirs(q, k, v, d_out):
    # Made here: its tables are arrays of the device that it is traced for.
    return jax.vjp(splash.make_splash_mha_single_device(causal, block_sizes=sizes), q, k, v)[1](
      d_out
    )

  jax.jit(ours).lower(*[array] * 4, rows, rows).compile()
  jax.jit(theirs).lower(*[shape(HEADS, LENGTH, head_dim)] * 4).compile()


def main(_):
  print("                      hot           rest      matrix use      spills")
  print("chip dim kernel   ours splash   ours splash   ours splash   ours splash")
  above = []
  for chip in CHIPS.value:
    for head_dim in map(int, HEAD_DIMS.value):
      for kernel, (our, their) in measure(chip, head_dim).items():
        print(
          f"{chip:4} {head_dim:3} {kernel:7} {our.hot:5} {their.hot:6}  {our.total - our.hot:5}"
          f" {their.total - their.hot:6}  {our.matrix:5.2f} {their.matrix:6.2f}  {our.spills:5}"
          f" {their.spills:6}",
          flush=True,
        )
        if our.hot > their.hot:
          above.append(f"{chip} {head_dim} {kernel}")
  print(
    "ours at or below splash in every cell" if not above else f"above splash: {', '.join(above)}"
  )


if __name__ == "__main__":
  app.run(main)
