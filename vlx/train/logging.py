"""What a run writes about itself: metrics.jsonl, TensorBoard, a line of progress."""

import json
import pathlib
import sys
import time
from collections.abc import Mapping

import tensorboardX
import tqdm


class MetricsLog:
  """Writes each logged step once, also when a run is stopped and goes on.

  Args:
    workdir: of the run; lines of `metrics.jsonl` after `start` are dropped, for those steps come
      again.
    start: the step at which the run goes on.
    stop: the last step.
    examples_per_step: the global batch.
  """

  def __init__(self, workdir: pathlib.Path, start: int, stop: int, examples_per_step: int):
    self._path = workdir / "metrics.jsonl"
    kept = [line for line in read_metrics(workdir) if line["step"] <= start]
    with self._path.open("w") as f:
      f.writelines(json.dumps(line) + "\n" for line in kept)
    self._file = self._path.open("a")
    self._board = tensorboardX.SummaryWriter(str(workdir / "tensorboard"), purge_step=start)
    self._bar = tqdm.tqdm(
        total=stop, initial=start, unit="step", disable=not sys.stdout.isatty(), file=sys.stdout
    )
    self._examples = examples_per_step
    self._line: dict[str, float] = {}
    self._since, self._time = start, time.monotonic()

  def advance(self, step: int) -> None:
    """Moves the bar to `step`."""
    self._bar.update(step - self._bar.n)

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Adds values to the line of `step`; the line is written when the next one begins."""
    if self._line.get("step", step) != step:
      self.flush()
    values = {k: float(v) for k, v in values.items()}
    self._line = {"step": step, **self._line, **values}
    for name, value in values.items():
      self._board.add_scalar(name, value, step)
    if "train/loss" in values:
      self._bar.set_postfix(
          loss=f"{values['train/loss']:.4f}", examples_per_s=f"{values['examples_per_second']:.0f}"
      )

  def flush(self) -> None:
    """Writes the line that is being filled."""
    if self._line:
      self._file.write(json.dumps(self._line) + "\n")
      self._file.flush()
    self._line = {}

  def speed(self, step: int) -> dict[str, float]:
    """Examples per second since the last call."""
    now = time.monotonic()
    rate = (step - self._since) * self._examples / (now - self._time)
    self._since, self._time = step, now
    return {"examples_per_second": rate}

  def pause(self):
    """Takes what happens until the next `resume` out of the speed."""
    self._paused = time.monotonic()

  def resume(self):
    self._time += time.monotonic() - self._paused

  def say(self, text: str) -> None:
    """A line above the progress bar."""
    self._bar.write(text, file=sys.stdout)
    sys.stdout.flush()

  def close(self) -> None:
    self.flush()
    self._bar.close()
    self._file.close()
    self._board.close()


def read_metrics(workdir: pathlib.Path) -> list[dict[str, float]]:
  """The lines of a run's metrics.jsonl; a last one that was cut off is left out."""
  path, lines = workdir / "metrics.jsonl", []
  for line in path.read_text().splitlines() if path.exists() else []:
    try:
      lines.append(json.loads(line))
    except ValueError:
      pass
  return lines
