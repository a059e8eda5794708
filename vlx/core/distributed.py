"""How one training becomes one of many processes.

On TPU pods, under SLURM and Open MPI, JAX finds the other processes by itself. Elsewhere three
flags say where they are; `scripts/local.py` starts several on one machine.
"""

import jax
from absl import flags

from vlx.core.errors import UserError

# A process that is silent for so long is taken for dead, and ends all: whoever waits for it in a
# collective would wait for ever. JAX's own 100 seconds are long for a paid pod.
SILENCE_S = 30


def define_flags() -> tuple[flags.FlagHolder, ...]:
  """--coordinator, --num_processes and --process_id, whose values `join` takes."""
  return (
    flags.DEFINE_string(
      "coordinator", None, "HOST:PORT of process 0; not needed on TPU pods and under SLURM."
    ),
    flags.DEFINE_integer("num_processes", None, "How many processes train together."),
    flags.DEFINE_integer("process_id", None, "Which of them this one is, from 0."),
  )


def join(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
  """Finds the other processes; comes back at once where there are none. Before any JAX computation.

  Raises:
    UserError: where only some of the arguments are given, or the others do not come.
  """
  given = (coordinator, num_processes, process_id)
  named = [value is not None for value in given]
  if any(named) and not all(named):
    raise UserError(
      "give --coordinator, --num_processes and --process_id together, or none of them"
    )
  # Else the coordinator listens on every interface, whatever address the others are given.
  host = (coordinator or "").rpartition(":")[0]
  local = coordinator if host in ("127.0.0.1", "localhost", "[::1]") else None
  try:
    jax.distributed.initialize(
      *given,
      coordinator_bind_address=local,
      cluster_detection_method="deactivate" if all(named) else None,
      heartbeat_timeout_seconds=SILENCE_S,
      shutdown_timeout_seconds=SILENCE_S,
    )
  except ValueError as e:
    if any(named):
      raise UserError(f"--coordinator, --num_processes, --process_id: {e}") from e
    # No cluster was found: this process is alone.
  except jax.errors.JaxRuntimeError as e:
    raise UserError(f"timed out waiting for other processes: {e}") from e


def is_first() -> bool:
  """Whether this is the process that writes what is written once."""
  return jax.process_index() == 0
