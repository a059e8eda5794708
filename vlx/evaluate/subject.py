"""What evaluators look at: a run, or a public model beside somebody's data."""

import dataclasses

import jax

from vlx.data import batches, sources
from vlx.data.transforms import preprocess
from vlx.data.tokenizers import trained as tokenizers
from vlx.core.system import System
from vlx.train.run import Run


@dataclasses.dataclass(frozen=True)
class Loaded:
  """A model that no run of vlx made, and the data to measure it on: what evaluators ask of a `Run`."""

  system: System
  tokenizer: tokenizers.Tokenizer
  mesh: jax.sharding.Mesh
  data: str  # as in a config: "folder:PATH"

  def source(self, split: str) -> sources.Source:
    return sources.open_source(self.data, split)

  def examples(self, split: str, ops: str) -> batches.Examples:
    return batches.Examples(self.source(split), preprocess.parse(ops, self.tokenizer))


Subject = Run | Loaded
