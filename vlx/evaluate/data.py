"""The data that evaluators look at."""

import dataclasses

from vlx.core.errors import UserError
from vlx.data import batches, sources
from vlx.data.records import Source
from vlx.data.tokenizers import Tokenizer
from vlx.data.transforms import preprocess
from vlx.data.transforms.preprocess import Preprocess


@dataclasses.dataclass(frozen=True)
class Data:
  """Splits of a source, as a model takes them.

  Attributes:
    spec: of the source, "folder:PATH".
    tokenizer: for ops that ask for one.
    image_transform: ops that make an encoded image the model's input.
    max_bad_records: so many records of a split may be replaced by their neighbours.
  """

  spec: str
  tokenizer: Tokenizer | None
  image_transform: str
  max_bad_records: int = 0

  def source(self, split: str) -> Source:
    if not self.spec:
      raise UserError("data.source is not set: evaluators need it, also beside data.streams")
    return sources.open_source(self.spec, split)

  def examples(self, split: str, *ops: str, image_transform: str = "") -> batches.Examples:
    """Examples of a split: the image transform (or another), then more ops."""
    return self.of_records(self.source(split), *ops, image_transform=image_transform)

  def of_records(self, records, *ops: str, image_transform: str = "") -> batches.Examples:
    """The same of records that need not be a split's."""
    return batches.Examples(records, self._parsed(ops, image_transform), self.max_bad_records)

  def to_look_at(self, split: str, image_transform: str = "") -> batches.Examples:
    """Examples whose images are uint8."""
    parsed = self._parsed((), image_transform).without_normalize()
    return batches.Examples(self.source(split), parsed, self.max_bad_records)

  def _parsed(self, ops: tuple[str, ...], image_transform: str) -> Preprocess:
    whole = [image_transform or self.image_transform, *ops]
    return preprocess.parse("|".join(part for part in whole if part), self.tokenizer)
