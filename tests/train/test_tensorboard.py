"""TensorBoard's events: what is written can be read, what cannot be written stops nothing."""

import struct

from matplotlib import pyplot as plt
from tensorboardX.proto import event_pb2

from vlx.train import tensorboard
from vlx.train.tensorboard import EventFile


def events(folder):
  (path,) = folder.iterdir()
  data, found = path.read_bytes(), []
  while data:
    (size,) = struct.unpack("Q", data[:8])
    found.append(event_pb2.Event.FromString(data[12 : 12 + size]))
    data = data[16 + size :]
  return found


def test_scalars_and_figures_are_events(tmp_path):
  file = EventFile(tmp_path / "tensorboard", 3, print)
  file.scalar(4, "train/loss", 0.5)
  figure = plt.figure(figsize=(1, 1))
  file.figure(4, "samples", figure)
  plt.close(figure)
  file.close()
  version, start, scalar, image = events(tmp_path / "tensorboard")
  assert version.file_version == "brain.Event:2"
  assert start.session_log.status == event_pb2.SessionLog.START and start.step == 3
  assert (scalar.step, scalar.summary.value[0].simple_value) == (4, 0.5)
  assert image.summary.value[0].image.encoded_image_string.startswith(b"\x89PNG")


def test_what_is_old_is_on_the_disk(tmp_path, monkeypatch):
  file = EventFile(tmp_path / "tensorboard", 0, print)
  file.scalar(1, "train/loss", 0.5)
  assert not events(tmp_path / "tensorboard")  # each line of a log does not wait for the disk
  monkeypatch.setattr(tensorboard, "FLUSH_EVERY", 0)
  file.scalar(2, "train/loss", 0.5)
  assert [e.step for e in events(tmp_path / "tensorboard")][-2:] == [1, 2]


def test_what_cannot_be_written_is_said_once_and_stops_nothing(tmp_path):
  (tmp_path / "tensorboard").write_text("a file")
  said = []
  file = EventFile(tmp_path / "tensorboard", 0, said.append)
  for step in range(100):  # more than any queue holds
    file.scalar(step, "train/loss", 0.5)
  file.close()
  assert len(said) == 1 and "the run goes on without them" in said[0]


def test_a_process_that_does_not_write_makes_no_folder(tmp_path):
  file = EventFile(None, 0, print)
  file.scalar(1, "train/loss", 0.5)
  file.close()
  assert not list(tmp_path.iterdir())
