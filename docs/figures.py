"""What pages say of results/*.json and experiments/results/*.json."""

import ast
import importlib
import json
import pathlib
import pkgutil
import statistics
from collections.abc import Sequence
from typing import Any

from configs.clip import BASELINES
from vlx.ablate import experiment as ablations
from vlx.evaluate.report import page, sheets
from vlx.evaluate.report.page import number

ROOT = pathlib.Path(__file__).parents[1]
GENERATED = ROOT / "docs" / "generated"


def result(name: str) -> dict[str, Any]:
  """results/NAME.json."""
  return json.loads((ROOT / "results" / f"{name}.json").read_text())


def measure(name: str, *keys: str) -> str:
  """Measures of results/NAME.json, as in "52.0 / 95.3"."""
  return " / ".join(number(result(name)["measures"][key]) for key in keys)


def provenance(name: str) -> str:
  """A line of Markdown: the command, and where and when it gave results/NAME.json."""
  return _provenance(result(name))


def _provenance(found) -> str:
  told = [f"`{found['command']}`"]
  if "seed" in found:
    told.append(f"seed {found['seed']}")
  if found.get("training_seconds"):
    told.append(f"{found['training_seconds'] / 60:.0f} min of training")
  versions = ", ".join(f"{k} {v}" for k, v in found["versions"].items() if k in ("python", "jax"))
  told += [found["device"], versions, f"{found['date']}, commit {found['commit']}"]
  return "; ".join(told) + (f" ({found['note']})" if "note" in found else "")


def rows(name: str) -> list[dict[str, Any]]:
  """Those of a benchmark, results/NAME.json."""
  return result(name)["rows"]


def measured(name: str) -> str:
  """A line of Markdown: a benchmark's commands, and where and when they ran."""
  found = result(name)
  commands = found.get("commands") or [found["command"]]
  told = ["; ".join(f"`{c}`" for c in commands), found["device"], f"jax {found['jax']}"]
  told.append(found["date"] + (f", commit {found['commit']}" if "commit" in found else ""))
  return "; ".join(told)


def pivot(
  rows: Sequence[dict[str, Any]], down: Sequence[str], across: Sequence[str], value: str
) -> str:
  """A Markdown table of `value`: fields `down` tell the rows apart, fields `across` the columns.

  A list of repeated measurements shows its median; a message in place of a number, a dash.
  """
  label = lambda row, names: tuple(str(row[n]) for n in names)
  cells = {(label(r, down), label(r, across)): r.get(value) for r in rows}
  lines, columns = (list(dict.fromkeys(key[i] for key in cells)) for i in (0, 1))
  out = [
    "| " + " | ".join([*down, *(", ".join(c) for c in columns)]) + " |",
    "|---" * (len(down) + len(columns)) + "|",
  ]
  for line in lines:
    out.append("| " + " | ".join([*line, *(_cell(cells.get((line, c))) for c in columns)]) + " |")
  return "\n".join(out)


def _cell(value: Any) -> str:
  if isinstance(value, list):
    value = statistics.median(value)
  if not isinstance(value, int | float):
    return "–"
  return f"{value:,.0f}" if abs(value) >= 100 else number(value)


def experiments() -> list[dict[str, Any]]:
  """Those that have results: the record, its name, the question and what its file says of it."""
  found = []
  for path in sorted((ROOT / "experiments" / "results").glob("*.json")):
    source = (ROOT / "experiments" / f"{path.stem}.py").read_text()
    question, *about = ast.get_docstring(ast.parse(source)).split("\n\n")
    record = json.loads(path.read_text())
    # The last two paragraphs are the command and where the results are.
    found.append(
      record | {"name": path.stem, "question": question, "about": "\n\n".join(about[:-2])}
    )
  return found


def ablation_provenance(record: dict[str, Any]) -> str:
  """Of a record with the runs one by one, or with one provenance for all of them."""
  if not record["runs"]:
    return _provenance(record) + f"; {record['steps']} steps, seeds {record['seeds']}"
  first = record["runs"][0]
  seconds = sum(run["training_seconds"] for run in record["runs"])
  seeds = sorted({run["seed"] for run in record["runs"]})
  return (
    f"`{first['command']}`; {first['steps']} steps, seeds {seeds},"
    f" {seconds / 60:.0f} min of training in all; {first['device']};"
    f" jax {first['versions']['jax']}; {first['date']}, commit {first['commit']}"
  )


def draw_plots() -> None:
  """The images that pages name: a plot of each ablation, DALL-E's re-ranking curves."""
  GENERATED.mkdir(exist_ok=True)
  for record in experiments():
    ablations.plot(record, GENERATED / f"{record['name']}.png")
  measures = result("dalle_emoji")["measures"]
  sizes = [2**i for i in range(7)]
  panels: dict[str, dict[str, list[float]]] = {}
  for split in ("combo", "concept"):
    for name in ("clip_cosine", "groups_accuracy", "tones_accuracy"):
      keys = [f"reranking/{split}/best_of_{n}/{name}" for n in sizes]
      if all(key in measures for key in keys):
        panels.setdefault(name, {})[split] = [measures[key] for key in keys]
  figure = sheets.curves(panels, sizes, "best of", "")
  (GENERATED / "dalle_best_of.png").write_bytes(page.to_png(figure))


def modules(room: str) -> list[str]:
  """The modules of a package that have a docstring of their own, by their dotted names."""
  package = importlib.import_module(room)
  if not hasattr(package, "__path__"):
    return [room]
  names = [room, *(info.name for info in pkgutil.walk_packages(package.__path__, f"{room}."))]
  found = {n: importlib.import_module(n) for n in names if not n.endswith("__main__")}
  return [name for name, module in found.items() if module.__doc__]


NAMES = {
  function.__name__: function
  for function in (
    result,
    measure,
    provenance,
    rows,
    measured,
    pivot,
    number,
    experiments,
    ablation_provenance,
    modules,
  )
} | {"ablation_table": ablations.table, "baselines": BASELINES}
