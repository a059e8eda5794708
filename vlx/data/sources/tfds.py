"""Data sets of TensorFlow Datasets."""

import filelock

from vlx.core.config import nearest
from vlx.core.errors import UserError
from vlx.core.files import cache_dir
from vlx.data.records import strings


class TfdsSource:
  """Any data set of TensorFlow Datasets, prepared as array_record on first use.

  Text comes as str, images stay encoded. Data lives where `$TFDS_DATA_DIR` says
  (else ~/tensorflow_datasets).
  """

  def __init__(self, name: str, split: str):
    import tensorflow_datasets as tfds

    import vlx.data.datasets.emoji_builder  # noqa: F401  # registers it

    tfds.disable_progress_bar()
    try:
      builder = tfds.builder(name, file_format="array_record")
    except tfds.core.DatasetNotFoundError as e:
      raise UserError(f"TFDS knows no data set {name!r}") from e
    # One process of a machine prepares, the others wait.
    lock = cache_dir() / "locks" / f"{builder.name}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(lock):
      builder.download_and_prepare()
    if split not in builder.info.splits:
      raise UserError(f"no split {split!r} in {name}: {nearest(split, builder.info.splits)}")
    skip = {
      name: tfds.decode.SkipDecoding()
      for name, feature in builder.info.features.items()
      if isinstance(feature, tfds.features.Image)
    }
    self.class_names = {
      name: tuple(feature.names)
      for name, feature in builder.info.features.items()
      if isinstance(feature, tfds.features.ClassLabel)
    }
    self._texts = {
      name
      for name, feature in builder.info.features.items()
      if isinstance(feature, tfds.features.Text)
      or (
        isinstance(feature, tfds.features.Sequence)
        and isinstance(feature.feature, tfds.features.Text)
      )
    }
    self._records = builder.as_data_source(split, decoders=skip)
    self._label = f"{name}/{split}"

  def __len__(self):
    return len(self._records)

  def __getitem__(self, index):
    record = dict(self._records[int(index)])
    for name in self._texts:
      value = record[name]
      if isinstance(value, bytes):
        record[name] = value.decode()
      else:
        record[name] = tuple(v.decode() for v in value)
    return record

  def name(self, index):
    return f"{self._label}#{index}"

  def texts(self, fields):
    for i in range(len(self)):
      record = self[i]
      for field in fields:
        yield from strings(record[field])
