"""Hardware that is not here: topologies by name, what a chip holds and does, and its compiler.

The compilers are packages that stand beside the others (`make test-all` puts them into
`.venv/compilers`), for JAX looks for devices wherever it finds them installed. They are read in a
process of its own.
"""

import dataclasses
import importlib.resources
import math
import os
import pathlib
import re
import sys

from vlx.core.errors import UserError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """One device as JAX counts them.

  Attributes:
    peak_flops: of dense bf16 products per second; None: not known.
    memory: bytes that a program may use, None: unlimited.
  """

  peak_flops: float | None
  memory: int | None


# Peaks: Google Cloud's pages "TPU v4", "TPU v5e", "TPU v5p", "TPU v6e"; NVIDIA's H100 data sheet,
# SXM, no sparsity. Memory: what the compilers let a program have (TPU: as their error says when it
# is not enough; H100: device_memory_size in h100.txtpb), of 32, 16, 95, 32 and 80 on paper.
CHIPS = {
  "v4": Chip(275e12, int(30.75 * GIB)),
  "v5e": Chip(197e12, int(15.75 * GIB)),
  "v5p": Chip(459e12, int(95.74 * GIB)),
  "v6e": Chip(918e12, int(31.25 * GIB)),
  "h100": Chip(989e12, 84_942_979_072),
}
# Slices one can rent; v4 and v5p come as cuboids of hosts of 2x2x1.
SQUARES = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
LARGEST_CUBOID = {"v4": 4096, "v5p": 8960}
NAMES = (
  f"v5e:AxB and v6e:AxB with AxB of {', '.join(SQUARES)};"
  " v4:AxBxC and v5p:AxBxC with A and B even, e.g. v5p:2x2x1; h100:N with N below 8 or whole eights; cpu:N"
)

# Package to look for, and what to install (requirements-compile.txt).
COMPILERS = {
  "tpu": ("libtpu", ("libtpu==0.0.42.1",)),
  "cuda": (
    "jax_cuda12_plugin",
    ("jax-cuda12-plugin==0.10.2", "jax-cuda12-pjrt==0.10.2", "nvidia-cuda-nvcc-cu12>=12.9,<13"),
  ),
}


@dataclasses.dataclass(frozen=True)
class Topology:
  """A `kind` of chip ("v5e", "h100", "cpu") and how many along each axis."""

  kind: str
  shape: tuple[int, ...]

  @property
  def name(self) -> str:
    return f"{self.kind}:{'x'.join(map(str, self.shape))}"

  @property
  def devices(self) -> int:
    return math.prod(self.shape)

  @property
  def is_tpu(self) -> bool:
    return self.kind in (*LARGEST_CUBOID, "v5e", "v6e")

  @property
  def chip(self) -> Chip:
    if self.kind != "cpu":
      return CHIPS[self.kind]
    # The virtual devices share this machine's memory.
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Chip(None, memory // self.devices)


def parse(name: str) -> Topology:
  """The topology "v5e:4x4".

  Raises:
    UserError: for one that does not exist, naming those that do.
  """
  kind, _, size = name.partition(":")
  if re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", size):
    topology = Topology(kind, tuple(map(int, size.split("x"))))
    a, b, c = (*topology.shape, 0, 0, 0)[:3]
    if {
      "v5e": size in SQUARES,
      "v6e": size in SQUARES,
      "h100": len(topology.shape) == 1 and (a < 8 or a % 8 == 0),
      "cpu": len(topology.shape) == 1,
    }.get(
      kind,
      kind in LARGEST_CUBOID
      and len(topology.shape) == 3
      and a % 2 == b % 2 == 0
      and a * b * c <= LARGEST_CUBOID[kind],
    ):
      return topology
  raise UserError(f"no topology {name!r}; there are {NAMES}")


def find_compiler(topology: Topology) -> pathlib.Path | None:
  """The folder in which the topology's compiler is found, None where none is needed.

  Raises:
    UserError: where it is not installed: what to type.
  """
  if topology.kind == "cpu":
    return None
  package, requirements = COMPILERS["tpu" if topology.is_tpu else "cuda"]
  beside = pathlib.Path(sys.prefix) / "compilers"
  for folder in map(pathlib.Path, [*sys.path, beside]):
    if (folder / package).is_dir():
      return folder
  wanted = " ".join(f"'{r}'" for r in requirements)
  raise UserError(
    f"the compiler for {topology.kind} is not installed; type:"
    f" {sys.executable} -m pip install --no-deps --target {beside} {wanted}"
  )


def environment(topology: Topology) -> dict[str, str]:
  """Environment variables of the process that compiles."""

  def xla(flag):
    return f"{os.environ.get('XLA_FLAGS', '')} {flag}"

  if topology.kind == "cpu":
    count = f"--xla_force_host_platform_device_count={topology.devices}"
    return {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla(count)}
  path = [str(find_compiler(topology)), *filter(None, [os.environ.get("PYTHONPATH")])]
  variables = {"PYTHONPATH": os.pathsep.join(path)}
  if not topology.is_tpu:
    return {
      **variables,
      "JAX_PLATFORMS": "cpu,cuda",
      "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
      # Tiles of XLA's own Triton products are tuned on the device; without one it fails on some.
      "XLA_FLAGS": xla("--xla_gpu_enable_triton_gemm=false"),
    }
  return {
    **variables,
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",  # this is no machine of Google's
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no device is opened, so others may compile meanwhile
  }


def devices(topology: Topology) -> list:
  """JAX's devices of the topology, in a process started with its `environment`; nothing runs on
  them.
  """
  import jax
  from jax.experimental import topologies

  if topology.kind == "cpu":
    return jax.devices()
  if topology.kind == "h100":
    target = importlib.resources.files("vlx.compile").joinpath("h100.txtpb").read_text()
    # Slices x hosts x devices of a host; hosts have eight.
    hosts, local = max(1, topology.devices // 8), min(8, topology.devices)
    return topologies.get_topology_desc(
      "h100", platform="cuda", target_config=target, topology=f"1x{hosts}x{local}"
    ).devices
  options = {}
  if topology.kind == "v4":
    options["chip_config_name"] = (
      "megacore"  # both cores of a chip as one device, as JAX runs on it
    )
  if topology.devices == 1:
    options["chips_per_host_bounds"] = (1, 1, 1)
  return topologies.get_topology_desc(topology.name, platform="tpu", **options).devices
