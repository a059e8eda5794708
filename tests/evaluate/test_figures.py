"""Where evaluation's figures are written."""

import pytest
from matplotlib import pyplot as plt

from vlx.evaluate import runner


@pytest.mark.parametrize("split", ("x/../../y", "/etc/x", "..", "a\nb", "é\u202e", "x" * 500))
def test_a_figure_of_any_split_stays_in_its_folder(tmp_path, split):
  figure = plt.figure(figsize=(1, 1))
  runner.save_figures({f"captions_{split}": figure}, tmp_path / "run")
  plt.close(figure)
  (written,) = (path for path in tmp_path.rglob("*") if path.is_file())
  assert written.parent == tmp_path / "run" / "figures" and written.suffix == ".png"
