"""report.html: one page that stands alone, with what a run was, its figures and its pictures."""

import base64
import html
import io
import json
import pathlib
import statistics

import jax
from matplotlib import pyplot as plt

from vlx.core import config as configs
from vlx.core import distributed
from vlx.core import files
from vlx.evaluate.runner import number
from vlx.train.logging import read_metrics
from vlx.train.run import Run

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
table { border-collapse: collapse } th, td { padding: .2rem .8rem; text-align: right; border-bottom: 1px solid #e5e5e5 }
th:first-child, td:first-child { text-align: left } .better { color: #1a7f37; font-weight: 600 }
img { max-width: 100% } pre { background: #f6f8fa; padding: 1rem; overflow-x: auto; font-size: 12px }
"""


def write(run: Run) -> pathlib.Path:
  """Writes the page from what the run's folder holds: metrics.jsonl, results.json, samples/.

  Of a run that is not finished, the figures are those of its last evaluation.
  """
  path = run.workdir / "report.html"
  if not distributed.is_first():
    return path
  metrics = read_metrics(run.workdir)
  results = {k: v for line in metrics for k, v in line.items() if k.count("/") >= 2}
  if (finished := run.workdir / "results.json").exists():
    results = json.loads(finished.read_text())
  config = run.config
  parts = [
      f"<h1>{html.escape(run.workdir.name)}: {html.escape(config.system.rpartition('.')[2])}</h1>",
      f"<p>{_summary(run, metrics)}</p>",
      "<h2>Figures</h2>", _figures(results, config.baselines),
      "<h2>Curves</h2>", _image(_curves(metrics), "loss and measures over the steps"),
  ]
  samples = sorted((run.workdir / "samples").glob("*.png"))
  if samples:
    parts += ["<h2>Samples</h2>", *(_image(p.read_bytes(), p.stem) for p in samples)]
  parts += [f"<h2>Config</h2><pre>{html.escape(configs.to_json(config))}</pre>"]
  files.write(
      path,
      "<!doctype html><html lang=en><meta charset=utf-8>"
      f"<title>{html.escape(run.workdir.name)}</title><style>{STYLE}</style>" + "\n".join(parts),
  )
  return path


def _summary(run: Run, metrics) -> str:
  config = run.config
  count = sum(x.size for x in jax.tree.leaves(run.params_shapes))
  speeds = [m["examples_per_second"] for m in metrics if "examples_per_second" in m]
  done = max((m["step"] for m in metrics), default=0)
  text = "" if done == config.steps else "Not finished. "
  text += (
      f"{count:,} parameters, trained on {config.data.source} ({config.data.split}) for {done:,} of"
      f" {config.steps:,} steps of {config.data.batch_size}."
  )
  if speeds:
    waits = [m.get("data_wait", 0.0) for m in metrics if "examples_per_second" in m]
    text += (
        f" Median {statistics.median(speeds):,.0f} examples per second,"
        f" {100 * statistics.mean(waits):.1f} percent of the time spent waiting for data."
    )
  return html.escape(text)


def _figures(results, baselines) -> str:
  rows = []
  for key, value in sorted(results.items()):
    baseline = baselines.get(key)
    beside = "" if baseline is None else number(baseline)
    better = " class=better" if baseline is not None and value > baseline else ""
    rows.append(
        f"<tr><td>{html.escape(key)}</td><td{better}>{number(value)}</td><td>{beside}</td></tr>"
    )
  return f"<table><tr><th>measure</th><th>run</th><th>baseline</th></tr>{''.join(rows)}</table>"


def _curves(metrics) -> bytes:
  """Loss on the left; measures at top rank (or accuracy) on the right."""
  figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
  loss = [(m["step"], m["train/loss"]) for m in metrics if "train/loss" in m]
  left.plot(*zip(*loss) if loss else ((), ()), linewidth=1)
  left.set(xlabel="step", ylabel="training loss")
  shown = sorted({
      k for m in metrics for k in m if k.endswith(("image_to_text_r1", "top1", "accuracy", "bleu4", "exact"))
      and not k.startswith("train/")
  })
  for key in shown:
    points = [(m["step"], m[key]) for m in metrics if key in m]
    right.plot(*zip(*points), marker="o", markersize=3, linewidth=1, label=key)
  right.set(xlabel="step", ylabel="%", xlim=left.get_xlim(), ylim=(0, None))
  if shown:
    right.legend(fontsize=7)
  out = io.BytesIO()
  figure.savefig(out, format="png", dpi=110)
  plt.close(figure)
  return out.getvalue()


def _image(png: bytes, alt: str) -> str:
  return f'<p><img alt="{html.escape(alt)}" src="data:image/png;base64,{base64.b64encode(png).decode()}"></p>'
