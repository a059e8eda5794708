"""What is lost where most layers attend to a row or a column alone?

Ramesh et al., 2021, appendix B.1 take the sparse masks for speed, after Child et al., 2019
("Generating Long Sequences with Sparse Transformers", Table 1), who found no loss in likelihood,
even a gain. Here on emoji, above the tokenizer of configs/vqvae.py:ablation, where 64 codes would
need no sparsity.

The claim holds: sparse masks are even ahead, as Child et al. found.

  python -m vlx.ablate --experiment=experiments/dalle_masks.py --workdir=runs/ablations

Results: experiments/results/dalle_masks.json (300 steps, 3 seeds).
"""

from vlx.ablate.experiment import Experiment

EXPERIMENT = Experiment(
  claim="Sparse masks (row, column, conv) model the codes as well as full attention does.",
  config="configs/dalle.py:ablation",
  arms={"sparse": {}, "full": {"model.pattern": ("full",), "model.last_mask": "full"}},
  measures=tuple(f"loss/{split}/image" for split in ("train", "combo", "concept")),
)
