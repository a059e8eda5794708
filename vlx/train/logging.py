"""Logging of a run: metrics.jsonl, TensorBoard, a line of progress."""

import contextlib
import json
import os
import pathlib
import sys
import time
from collections.abc import Mapping
from typing import Any

import tqdm

from vlx.core import distributed, files
from vlx.train.tensorboard import EventFile

WAITED_TOO_LONG = 0.1  # of the time, before a line says so
SECONDS_OF_SILENCE = 30  # before a line tells the step, where there is no bar


class MetricsLog:
  """Writes each logged step once, also when a run is stopped and goes on.

  Of many processes the first writes; the others keep the same account and are silent.

  Args:
    workdir: of the run; lines of `metrics.jsonl` after `start` are dropped, for those steps come
      again.
    start: the step at which the run goes on.
    stop: the last step.
    examples_per_step: the global batch.
  """

  def __init__(self, workdir: pathlib.Path, start: int, stop: int, examples_per_step: int):
    self._writes = distributed.is_first()
    path = workdir / "metrics.jsonl"
    self._line: dict[str, float] = {}
    self._begins: int | None = None  # where in the file this line begins, once it is there
    if self._writes:
      kept = [line for line in files.read_steps(path) if line["step"] <= start]
      before = [line for line in kept if line["step"] < start]
      text = "".join(json.dumps(line) + "\n" for line in before)
      if len(before) < len(kept):  # the line of `start` may get more
        self._line, self._begins = kept[len(before)], len(text)
        text += json.dumps(self._line) + "\n"
      files.write(path, text)
    self._file = open(path if self._writes else os.devnull, "a", encoding="utf-8")
    self._bar = tqdm.tqdm(
      total=stop,
      initial=start,
      unit="step",
      file=sys.stdout,
      disable=not (self._writes and sys.stdout.isatty()),
    )
    self._board = EventFile(workdir / "tensorboard" if self._writes else None, start, self.say)
    self._examples = examples_per_step
    self._since, self._time, self._waited, self._warned = start, time.monotonic(), 0.0, False
    self._told = time.monotonic()

  def advance(self, step: int) -> None:
    """Moves the bar to `step`."""
    self._bar.update(step - self._bar.n)

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Adds values to the line of `step`; the line is written when the next one begins, or by
    `flush`.
    """
    if self._line.get("step", step) != step:
      self.flush()
      self._line, self._begins = {}, None
    values = {k: float(v) for k, v in values.items()}
    self._line = {"step": step, **self._line, **values}
    for name, value in values.items():
      self._board.scalar(step, name, value)
    if "train/loss" in values:
      loss, speed = f"{values['train/loss']:.4f}", f"{values['examples_per_second']:.0f}"
      self._bar.set_postfix(loss=loss, examples_per_s=speed)
      if self._bar.disable and time.monotonic() - self._told > SECONDS_OF_SILENCE:
        self._told = time.monotonic()
        self.say(f"step {step} of {self._bar.total}: loss {loss}, {speed} examples/s")

  def figure(self, step: int, name: str, figure: Any) -> None:
    """A figure of matplotlib's, for TensorBoard, which keeps those of all steps."""
    self._board.figure(step, name, figure)

  def flush(self) -> None:
    """Writes the line that is being filled, in place of what was written of it."""
    if not (self._line and self._writes):
      return
    if self._begins is not None:
      self._file.truncate(self._begins)
    self._begins = self._file.seek(0, os.SEEK_END)
    self._file.write(json.dumps(self._line) + "\n")
    self._file.flush()

  def waited(self, seconds: float) -> None:
    """Counts time in which the devices waited for data."""
    self._waited += seconds

  def speed(self, step: int) -> dict[str, float]:
    """Since the last call: seconds, examples per second, the share of the time spent waiting for
    data.
    """
    spent = time.monotonic() - self._time
    measures = {
      "seconds": spent,
      "examples_per_second": (step - self._since) * self._examples / spent,
      "data_wait": self._waited / spent,
    }
    if measures["data_wait"] > WAITED_TOO_LONG and self._since and not self._warned:
      self._warned = True
      self.say(
        f"step {step}: {measures['data_wait']:.0%} of the time went into waiting for data"
        f" ({self._waited / (step - self._since):.3f} s of each step); more data.workers or"
        " data.threads, or a `cache` behind what is done once, may help"
      )
    self._since, self._time, self._waited = step, time.monotonic(), 0.0
    return measures

  @contextlib.contextmanager
  def paused(self):
    """Takes its time out of the speed."""
    start = time.monotonic()
    yield
    self._time += time.monotonic() - start

  def say(self, text: str) -> None:
    """A line above the progress bar."""
    if self._writes:
      self._bar.write(text, file=sys.stdout)
      sys.stdout.flush()

  def close(self) -> None:
    self.flush()
    self._bar.close()
    self._file.close()
    self._board.close()
