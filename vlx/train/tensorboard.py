"""TensorBoard's event file, written in the caller's own thread.

tensorboardX's `SummaryWriter` is a thread behind a queue, and whoever writes waits for ever once that
thread has died (of a full disk, of a clock that went back).
"""

import io
import pathlib
import time
from collections.abc import Callable
from typing import Any, cast

from matplotlib.figure import Figure
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2, summary_pb2

FLUSH_EVERY = 30  # seconds; each waits for the disk

events, summaries = cast(Any, event_pb2), cast(Any, summary_pb2)  # made when they are imported


class EventFile:
  """Scalars and figures of a run. Where they cannot be written, that is said once, and the run goes
  on without them.

  Args:
    folder: of the events; None writes nothing.
    purge_step: what an earlier file has of this step and later ones is dropped by TensorBoard.
    say: is told what could not be written.
  """

  def __init__(self, folder: pathlib.Path | None, purge_step: int, say: Callable[[str], None]):
    self._folder, self._say, self._writer = folder, say, None
    self._flushed = time.monotonic()
    start = events.SessionLog(status=events.SessionLog.START)
    self._write(session_log=start, step=purge_step)

  def scalar(self, step: int, name: str, value: float) -> None:
    self._write(summary=summary.scalar(name, value), step=step)

  def figure(self, step: int, name: str, figure: Figure) -> None:
    """The figure as an image; TensorBoard keeps those of all steps."""
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=100)
    image = summaries.Summary.Image(encoded_image_string=png.getvalue(), colorspace=4)
    value = summaries.Summary.Value(tag=name, image=image)
    self._write(summary=summaries.Summary(value=[value]), step=step)

  def close(self) -> None:
    self._attempt(lambda writer: writer.close())
    self._folder = None

  def _write(self, **fields: Any) -> None:
    event = events.Event(wall_time=time.time(), **fields)
    self._attempt(lambda writer: writer.write_event(event))
    if time.monotonic() - self._flushed > FLUSH_EVERY:
      self._flushed = time.monotonic()
      self._attempt(lambda writer: writer.flush())

  def _attempt(self, do: Callable[[EventsWriter], Any]) -> None:
    if self._folder is None:
      return
    try:
      if self._writer is None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(self._folder / "events"))
      do(self._writer)
    except (OSError, ValueError) as e:
      self._say(f"TensorBoard's events cannot be written ({e}); the run goes on without them")
      self._folder = None
