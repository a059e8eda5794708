"""Which similarity should a contrastive loss rank by?

CLIP uses the cosine (Radford et al., 2021, Figure 3) and does not compare it with others. Here the
same training with the plain inner product and with the negative Euclidean distance.

Half right. The cosine beats the inner product; beside the negative L2 distance it is no better on
`combo`, and within the spread of the seeds on the rest.

  python -m vlx.ablate --experiment=experiments/clip_similarity.py --workdir=runs/ablations

Results: experiments/results/clip_similarity.json (150 steps, 3 seeds).
"""

from vlx.ablate.experiment import Experiment

EXPERIMENT = Experiment(
  claim="Cosine similarity beats the inner product and the negative L2 distance.",
  config="configs/clip.py:demo",
  common={"steps": 150, "optim.ema_decay": 0.9},
  arms={
    "cosine": {"model.similarity_type": "cosine"},
    # Without normalisation the embeddings' own length is a temperature: start the scale at 1.
    "inner_product": {"model.similarity_type": "inner_product", "model.init_scale": 1.0},
    "negative_l2": {"model.similarity_type": "negative_l2", "model.init_scale": 1.0},
  },
  measures=tuple(
    f"retrieval/{split}/image_to_text_r{k}"
    for split in ("combo", "concept", "style")
    for k in (1, 5)
  ),
)
