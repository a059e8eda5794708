"""Where a vision transformer looks: pictures, no measures."""

import dataclasses

import numpy as np

from vlx.evaluate import predict as embed
from vlx.evaluate.report import sheets as pictures
from vlx.train.run import Run


@dataclasses.dataclass(frozen=True)
class Attention:
  """Draws `samples/attention_SPLIT.png`: pictures, and the same under the rollout of attention."""

  splits: tuple[str, ...]
  preprocess: str  # must keep "image" and "caption"
  count: int = 10

  def __call__(self, run: Run, variables, *, draw: bool) -> dict[str, float]:
    if not draw:
      return {}
    for split in self.splits:
      examples = run.examples(split, self.preprocess)
      chosen = np.linspace(0, len(examples) - 1, min(self.count, len(examples))).astype(int)
      inputs = np.stack([examples(int(i), None)[1]["image"] for i in chosen])
      maps = np.asarray(embed.apply(run.system, "attention_map", variables, inputs))
      plain = run.examples(split, pictures.before_normalize(self.preprocess))
      shown = [plain(int(i), None)[1] for i in chosen]
      pictures.attention_sheet(
          run.workdir / "samples" / f"attention_{split}.png",
          [(e["image"], m, e["caption"]) for e, m in zip(shown, maps)],
          f"{split}: what the image tower attends to (rollout over all layers)",
      )
    return {}
