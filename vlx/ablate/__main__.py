"""python -m vlx.ablate --experiment=experiments/clip_similarity.py --workdir=runs/ablations

Runs every arm of an experiment with every seed, leaving out what is already done, and writes
results.json, a table (mean and standard deviation over seeds) and a plot to WORKDIR/NAME/. The
documentation's ablations are these results.json, kept as experiments/results/NAME.json.
"""

import pathlib

from absl import flags

from vlx import cli
from vlx.ablate import experiment as experiments
from vlx.core import files
from vlx.core.errors import UserError

EXPERIMENT = flags.DEFINE_string(
  "experiment", None, "File with an EXPERIMENT, e.g. experiments/clip_similarity.py."
)
WORKDIR = flags.DEFINE_string("workdir", None, "Where experiments have their folders.")


def main():
  if EXPERIMENT.value is None or WORKDIR.value is None:
    raise UserError("give --experiment=FILE and --workdir=DIR")
  path = pathlib.Path(EXPERIMENT.value)
  experiment = experiments.load(path)
  folder = cli.folder("workdir", WORKDIR.value) / path.stem
  record = experiments.run_arms(experiment, folder)
  text = f"Claim: {record['claim']}\n\n{experiments.table(record)}"
  files.write(folder / "table.md", text)
  experiments.plot(record, folder / "plot.png")
  print(f"{text}\n{folder}/table.md, {folder}/plot.png, {folder}/results.json")


if __name__ == "__main__":
  cli.run(main)
