"""python -m vlx.train --config=configs/clip.py:emoji --workdir=runs/clip

Starts a run, or goes on with the one that the folder holds. As one of many processes: by itself on
TPU pods and under SLURM, elsewhere by --coordinator, --num_processes and --process_id.
"""

from absl import flags

from vlx import cli
from vlx.core import distributed
from vlx.core.errors import UserError
from vlx.evaluate.runner import Evaluation
from vlx.train import loop
from vlx.train.run import Run

PROCESSES = distributed.define_flags()
CONFIG = cli.define_config_flag()
WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder; made if it is not there.")
PROFILE = flags.DEFINE_bool("profile", False, "Write a trace of steps 10-15 to WORKDIR/profile.")


def main():
  if CONFIG.value is None or WORKDIR.value is None:
    raise UserError("give --config=FILE:VARIANT and --workdir=DIR")
  workdir = cli.folder("workdir", WORKDIR.value)
  distributed.join(*(flag.value for flag in PROCESSES))
  run = Run(CONFIG.value, workdir)
  loop.train(run, on_evaluate=Evaluation.of(run), profile=PROFILE.value)


if __name__ == "__main__":
  cli.run(main)
