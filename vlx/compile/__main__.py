"""python -m vlx.compile --config=configs/clip.py:paper --topology=v5e:4x4 [--json]

Compiles the step that `vlx.train` runs for hardware that is not here, from shapes alone: neither
data nor a tokenizer is needed. Says whether it fits, and what it holds, computes and sends. Exit
code 1 where it does not fit.

Topologies: v4|v5p:AxBxC and v5e|v6e:AxB (TPU slices), h100:N (hosts of eight), cpu:N (N virtual
devices, which share this machine's memory).
"""

import json
import sys

from absl import flags

from vlx import cli
from vlx.compile import program, report, topologies
from vlx.core.errors import UserError

CONFIG = cli.define_config_flag()
TOPOLOGY = flags.DEFINE_string(
  "topology", None, "What to compile for, e.g. v5e:4x4, h100:8, cpu:2."
)
JSON = flags.DEFINE_bool("json", False, "Print one JSON object instead of a table.")


def main():
  if CONFIG.value is None or TOPOLOGY.value is None:
    raise UserError("give --config=FILE:VARIANT and --topology=KIND:SHAPE")
  result = program.in_own_process(CONFIG.value, topologies.parse(TOPOLOGY.value))
  print(json.dumps(result) if JSON.value else report.table(result))
  if not result["fits"]:
    sys.exit(1)


if __name__ == "__main__":
  cli.run(main)
