"""A user's own folder, a broken image in it, from the command line to the report."""

import io
import json
import subprocess
import sys

import numpy as np
from PIL import Image


def test_training_on_a_folder(tmp_path):
  images = tmp_path / "pictures"
  images.mkdir()
  colors = {"red": (255, 0, 0), "green": (0, 160, 0), "blue": (0, 0, 255), "black": (0, 0, 0)}
  rows = []
  for i in range(60):
    name = list(colors)[i % 4]
    out = io.BytesIO()
    Image.new("RGB", (40 + i, 50), colors[name]).save(out, "jpeg")
    (images / f"{i}.jpg").write_bytes(out.getvalue() if i != 7 else out.getvalue()[:100])
    rows.append({"file_name": f"{i}.jpg", "caption": f"a {name} picture, number {i}"})
  (images / "metadata.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
  done = subprocess.run(
    [
      sys.executable,
      "-m",
      "vlx.train",
      "--config=configs/clip.py:folder",
      f"--config.data.source=folder:{images}",
      f"--workdir={tmp_path}/run",
      "--config.steps=6",
      *(f"--config.model.{tower}.depth=1" for tower in ("image", "text")),
      "--config.data.batch_size=16",
      "--config.log_every=2",
    ],
    capture_output=True,
    text=True,
    timeout=400,
  )
  assert done.returncode == 0, done.stderr
  assert "7.jpg" in done.stderr and "bad record 1 of at most" in done.stderr
  results = json.loads((tmp_path / "run" / "results.json").read_text())["measures"]
  assert np.isfinite(results["retrieval/val/image_to_text_r1"])
  assert (tmp_path / "run" / "figures" / "retrieval_val.png").exists()
  assert (tmp_path / "run" / "report.html").exists()
