"""What stands beside a figure."""

import json
import subprocess
import sys

from vlx.core import provenance as provenances
from vlx.core.provenance import provenance


def test_it_is_json_and_names_code_and_machine():
  found = json.loads(json.dumps(provenance()))
  assert found["versions"].keys() >= {"python", "jax", "flax"} and found["date"] and found["device"]


def test_the_command_is_as_typed(tmp_path):
  """A module by its name, a script by its path, with quotes where the shell needs them."""
  (tmp_path / "tell").mkdir()
  source = "from vlx.core.provenance import command\nprint(command())\n"
  (tmp_path / "tell" / "__main__.py").write_text(source)
  (tmp_path / "tell" / "__init__.py").write_text("")
  env = {"PYTHONPATH": f"{tmp_path}:.", "JAX_PLATFORMS": "cpu"}
  said = lambda *args: subprocess.run(
    [sys.executable, *args], env=env, capture_output=True, text=True, check=True
  ).stdout.strip()
  assert said("-m", "tell", "--prompt=red apple") == "python -m tell '--prompt=red apple'"
  path = str(tmp_path / "tell" / "__main__.py")
  assert said(path, "--x=1") == f"python {path} --x=1"


def test_an_installed_package_has_no_commit(monkeypatch, tmp_path):
  monkeypatch.setattr(provenances, "__file__", str(tmp_path / "site" / "vlx" / "core" / "x.py"))
  assert provenance()["commit"] is None
