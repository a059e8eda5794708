"""The command, end to end: on virtual CPU devices, and (slow) by the compilers of absent
hardware.
"""

import json
import pathlib
import re
import subprocess
import sys

import pytest

from vlx.compile import bundles, program, report, topologies
from vlx.core.config import load_config

ROOT = pathlib.Path(__file__).parents[2]
COMPILERS = ROOT / ".venv/compilers"


def compile_command(*args):
  done = subprocess.run(
    [sys.executable, "-m", "vlx.compile", *args],
    capture_output=True,
    text=True,
    cwd=ROOT,
    timeout=600,
  )
  return done.returncode, done.stdout, done.stderr


def test_on_virtual_devices():
  code, stdout, stderr = compile_command(
    "--config=configs/vit.py:smoke",
    "--topology=cpu:4",
    "--config.mesh.data=1",
    "--config.mesh.fsdp=-1",
    "--config.partition=((r'fc1/kernel', (None, None, 'fsdp')), ('.*', ()))",
    "--json",
  )
  assert code == 0 and not stderr
  result = json.loads(stdout)
  width, mlp, depth, classes = 32, 64, 2, 10
  block = 4 * (width * width + width) + 2 * width * mlp + mlp + width + 4 * width
  rest = 8 * 8 * 3 * width + width + 37 * width + width + 2 * width + width * classes + classes
  sizes = result["bytes_per_device"]
  assert result["parameters"] == depth * block + rest
  assert sizes["parameters"] == 4 * (depth * (block - width * mlp * 3 // 4) + rest)
  assert sizes["batch"] == 8 * (48 * 48 * 3 + 1) * 4  # 32 rows on 4 devices
  assert sizes["optimizer"] >= 2 * sizes["parameters"]
  # One activation of the MLP, at least, of the rows of a device.
  assert sizes["temporaries"] > 8 * 37 * mlp * 4
  batch, tokens = 32, 37
  first, head = 2 * 36 * 8 * 8 * 3 * width, 2 * width * classes

  def layer(queries):  # of the last layer the class token alone is asked for
    attention = 2 * (2 * queries * tokens * width)
    return (
      attention
      + 2 * tokens * 2 * width * width
      + 2 * queries * (2 * width * width + 2 * width * mlp)
    )

  assert result["model_flops_per_step"] == batch * (
    2 * first + 3 * ((depth - 1) * layer(tokens) + layer(1) + head)
  )
  # The kernels that are split are gathered, and the gradients of all others summed.
  whole = sizes["parameters"] - 4 * depth * width * mlp // 4
  assert result["collectives"]["all-reduce"]["bytes"] >= whole
  assert "all-gather" in result["collectives"] and result["fits"] and result["kernels"] == {}
  lines = report.table(result).splitlines()
  assert re.match(r"topology +cpu:4, 4 devices \(data 1 x fsdp 4 x tensor 1\)", lines[0])
  assert re.match(r"parameters +24,874", lines[2])


@pytest.mark.parametrize(
  "args,message",
  [
    (("--config=configs/vit.py:smoke",), "give --config=FILE:VARIANT and --topology=KIND:SHAPE"),
    (
      ("--config=configs/vit.py:smoke", "--topology=v5e:5x5"),
      "no topology 'v5e:5x5'; there are v5e:AxB",
    ),
    (
      ("--config=configs/vit.py:smoke", "--topology=cpu:2", "--config.mesh.fsdp=3"),
      "does not fit 2 devices",
    ),
  ],
)
def test_a_mistake_is_one_line_and_exit_code_2(args, message, command):
  code, stdout, stderr = command("vlx.compile", *args)
  assert code == 2 and not stdout
  assert stderr.startswith("error: ") and len(stderr.splitlines()) == 1 and message in stderr


@pytest.mark.parametrize(
  "message,sizes",
  [
    (
      "Ran out of memory in memory space hbm. Used 37.50G of 15.75G hbm. Exceeded hbm capacity by 21.75G.",
      (int(37.5 * 2**30), int(15.75 * 2**30)),
    ),
    (
      "Ran out of memory on HBM, the total memory required for HLO temporaries (512.00M) exceeds available HBM"
      " (0.25G).",
      (2**29, 2**28),
    ),
    ("RESOURCE_EXHAUSTED: vmem", None),
  ],
)
def test_what_the_tpu_compiler_says_where_a_program_does_not_fit(message, sizes):
  assert program.out_of_memory(message) == sizes


def test_bundles_of_a_utilization_file(tmp_path):
  path = tmp_path / "12-kernel.1-70-final_hlo-static-per-bundle-utilization.txt"
  rows = [
    "0 0 0 0 0 0 0 0 0 2",
    "4 0 2 0 0 0 0 0 1 0",
    "0 0 4 0 0 0 0 0 0 0",
    "2 0 0 0 0 0 0 0 0 0",
    "0 0 0 0 0 0 0 0 1 0",
  ]
  path.write_text(
    "\n".join(["== CAPACITY:", "MXU, …", "4 3 4 2 1 3 3 1 1 2", "== UTILIZATION:", *rows])
  )
  found = bundles.of_kernels(tmp_path, {"kernel.1": 1, "other": 1})
  assert found == {"kernel.1": bundles.Bundles(total=5, hot=3, matrix=0.5, vector=0.5, spills=1)}


def paper_variants():
  return [f"{path.relative_to(ROOT)}:paper" for path in sorted((ROOT / "configs").glob("*.py"))]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("path", paper_variants())
def test_paper_variants_compile_for_a_pod(path):
  assert COMPILERS.is_dir(), "no .venv/compilers: make test-all installs them"
  config = load_config(str(ROOT / path))
  # The largest pod that a batch divides: the small systems' batches are of 32 to 128.
  topology = next(
    t
    for t in map(topologies.parse, ("v5e:16x16", "v5e:8x8", "v5e:4x4"))
    if config.data.batch_size % t.devices == 0
  )
  result = program.in_own_process(config, topology)
  print(report.table(result))  # `pytest -rP` shows it
  assert result["fits"]


@pytest.mark.slow
def test_what_does_not_fit_says_by_how_much():
  assert COMPILERS.is_dir(), "no .venv/compilers: make test-all installs them"
  code, stdout, stderr = compile_command(
    "--config=configs/vit.py:smoke",
    "--topology=v5e:1x1",
    "--config.data.batch_size=4000000",
    "--json",
  )
  result = json.loads(stdout)
  assert code == 1 and not stderr and not result["fits"]
  sizes = result["bytes_per_device"]
  assert sizes["memory"] == topologies.CHIPS["v5e"].memory
  assert result["excess_bytes"] == sizes["total"] - sizes["memory"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2", "h100:8"])
def test_every_kind_of_chip(name):
  assert COMPILERS.is_dir(), "no .venv/compilers: make test-all installs them"
  code, stdout, stderr = compile_command(
    "--config=configs/vit.py:smoke", f"--topology={name}", "--json"
  )
  result = json.loads(stdout)
  assert code == 0 and not stderr and result["fits"]
  assert result["devices"] == topologies.parse(name).devices == result["mesh"]["data"]
  assert "all-reduce" in result["collectives"]
