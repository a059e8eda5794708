"""report.html: one page that stands alone, with what a run was, its figures and its images."""

import base64
import html
import io
import pathlib
import statistics
from collections.abc import Callable
from typing import Any

import jax
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from vlx.core import checkpoint, distributed, files
from vlx.core import config as configs
from vlx.core import system as systems
from vlx.core.system import System
from vlx.data.streams import Streams
from vlx.evaluate.results import read

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
table { border-collapse: collapse } th, td { padding: .2rem .8rem; text-align: right; border-bottom: 1px solid #e5e5e5 }
th:first-child, td:first-child { text-align: left } .better { color: #1a7f37; font-weight: 600 }
img { max-width: 100% } pre { background: #f6f8fa; padding: 1rem; overflow-x: auto; font-size: 12px }
"""


def write(
  workdir: pathlib.Path, config: Any, system: System, *, directions: Callable[[str], str | None]
) -> pathlib.Path:
  """Writes the page from what the run's folder holds: metrics.jsonl, results.json, figures/.

  Of a run that is not finished, the figures are those of its last evaluation.

  Args:
    workdir: the run's folder.
    config: resolved.
    system: of the run.
    directions: of a measure "higher" or "lower", whichever is better; None where nobody says.
  """
  path = workdir / "report.html"
  if not distributed.is_first():
    return path
  metrics = files.read_steps(workdir / "metrics.jsonl")
  measures = {
    k: v
    for line in metrics
    for k, v in line.items()
    if k.count("/") >= 2 and not k.startswith("train/")
  }
  if (finished := workdir / "results.json").is_file():
    measures = read(finished)["measures"]
  parts = [
    f"<h1>{html.escape(workdir.name)}: {html.escape(config.system.rpartition('.')[2])}</h1>",
    f"<p>{_summary(config, system, metrics, workdir)}</p>",
    "<h2>Figures</h2>",
    _figures(measures, config.baselines, directions),
    "<h2>Curves</h2>",
    _image(_curves(metrics, directions), "loss and measures over the steps"),
  ]
  figures = sorted((workdir / "figures").glob("*.png"))
  if figures:
    parts += ["<h2>Samples</h2>", *(_image(p.read_bytes(), p.stem) for p in figures)]
  parts += [f"<h2>Config</h2><pre>{html.escape(configs.to_json(config))}</pre>"]
  files.write(
    path,
    "<!doctype html><html lang=en><meta charset=utf-8>"
    f"<title>{html.escape(workdir.name)}</title><style>{STYLE}</style>" + "\n".join(parts),
  )
  return path


def _summary(config, system, metrics, workdir) -> str:
  shapes = systems.variable_shapes(system)
  count = sum(x.size for x in jax.tree.leaves(shapes["params"]))
  speeds = [m["examples_per_second"] for m in metrics if "examples_per_second" in m]
  done = max((m["step"] for m in metrics), default=0)
  streams = Streams.of(config.data)
  text = "" if done == config.steps else "Not finished. "
  if text and checkpoint.is_out_of_patience(config.checkpoint, workdir / "checkpoints", done):
    text = f"Ended early, by {config.checkpoint.best}. "
  text += (
    f"{count:,} parameters, trained on {' and '.join(f'{s.source} ({s.split})' for s in streams.by_name.values())}"
    f" for {done:,} of {config.steps:,} steps of {streams.batch_size}."
  )
  if speeds:
    waits = [m.get("data_wait", 0.0) for m in metrics if "examples_per_second" in m]
    text += (
      f" Median {statistics.median(speeds):,.0f} examples per second,"
      f" {100 * statistics.mean(waits):.1f} percent of the time spent waiting for data."
    )
  return html.escape(text)


def _figures(measures, baselines, directions) -> str:
  rows = []
  for key, value in sorted(measures.items()):
    baseline = baselines.get(key)
    beside = "" if baseline is None else number(baseline)
    ahead = baseline is not None and (
      value < baseline if directions(key) == "lower" else value > baseline
    )
    better = " class=better" if ahead else ""
    rows.append(
      f"<tr><td>{html.escape(key)}</td><td{better}>{number(value)}</td><td>{beside}</td></tr>"
    )
  return f"<table><tr><th>measure</th><th>run</th><th>baseline</th></tr>{''.join(rows)}</table>"


CURVES = 8  # measures that are plotted, at most: more cannot be told apart


def _curves(metrics, directions) -> bytes:
  """Losses on the left; on the right the measures of evaluations that say which way is better."""
  figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
  losses = sorted({k for m in metrics for k in m if k.startswith("train/") and k.endswith("loss")})
  for key in losses:
    left.plot(*zip(*((m["step"], m[key]) for m in metrics if key in m)), linewidth=1, label=key)
  left.set(xlabel="step", ylabel="training loss")
  if len(losses) > 1:
    left.legend(fontsize=7)
  measured = {}
  for line in metrics:
    for key in line:
      if not key.startswith("train/") and directions(key):
        measured.setdefault(key, []).append((line["step"], line[key]))
  for key, points in sorted(measured.items(), key=lambda item: (-len(item[1]), item[0]))[:CURVES]:
    right.plot(*zip(*points), marker="o", markersize=3, linewidth=1, label=key)
  right.set(xlabel="step", xlim=left.get_xlim())
  if measured:
    right.legend(fontsize=6)
  png = to_png(figure)
  plt.close(figure)
  return png


def to_png(figure: Figure) -> bytes:
  out = io.BytesIO()
  figure.savefig(out, format="png", dpi=100)
  return out.getvalue()


def number(value: float) -> str:
  """With one decimal, where it is below one with three digits."""
  return f"{value:.1f}" if abs(value) >= 1 or not value else f"{value:.3g}"


def _image(png: bytes, alt: str) -> str:
  return f'<p><img alt="{html.escape(alt)}" src="data:image/png;base64,{base64.b64encode(png).decode()}"></p>'
