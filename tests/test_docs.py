"""The commands that README and the pages of docs/ show: blocks marked quick run as they stand."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(sh|python) quick\n(.*?)^```$", re.M | re.S)
LINK = re.compile(r"\]\(([^)#\s{]+)(#[^)\s]*)?\)")


def quick_blocks(page):
  return BLOCK.findall(page.read_text())


@pytest.mark.parametrize(
  "page", [p for p in PAGES if quick_blocks(p)], ids=lambda p: str(p.relative_to(ROOT))
)
def test_quick_blocks_run(page, tmp_path):
  """In the order of the page, in a folder that has of the repository what is committed, but no runs."""
  for name in ("configs", "docs"):
    (tmp_path / name).symlink_to(ROOT / name)
  env = os.environ | {
    "PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}",
    "PYTHONPATH": str(ROOT),
    # One device, as a user has it.
    "XLA_FLAGS": re.sub(r"--xla_force_host\S*", "", os.environ.get("XLA_FLAGS", "")),
  }
  for language, block in quick_blocks(page):
    shell = ["bash", "-e", "-c"] if language == "sh" else [sys.executable, "-c"]
    done = subprocess.run([*shell, block], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_to_files(page):
  for target, _ in LINK.findall(page.read_text()):
    # Plots are made with the site.
    if not re.match(r"https?:|mailto:", target) and "generated/" not in target:
      assert (page.parent / target).exists(), target
