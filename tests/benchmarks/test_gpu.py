"""The GPU's benchmarks on a CPU: a part runs, and what it found lies in a file."""

import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]


def test_a_part_leaves_its_rows(tmp_path):
  command = [sys.executable, "-m", "benchmarks.gpu.nearest_code", "--tiny"]
  environment = os.environ | {"OUT": str(tmp_path), "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
  run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
  assert run.returncode == 0, run.stderr[-2000:]
  found = json.loads((tmp_path / "nearest_code.json").read_text())
  assert found["part"] == "nearest_code" and found["device"]
  assert [row["who"] for row in found["rows"]] == ["vlx", "vlx, XLA", "argmin, highest"]
  assert all(row["ms"] > 0 and row["wrong"] == 0 for row in found["rows"])
