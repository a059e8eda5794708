"""Should a codebook be moved by its loss or by moving averages?

van den Oord et al., 2017, moved it by the loss; appendix A.1 has the averages "as an alternative",
which their paper's experiments did not use. Here both on emoji, and the averages with codes that
are restarted once nothing is near to them.

In so short a run the claim does not hold: averages are ahead, and what counts most is that codes no
vector is near to are moved.

  python -m vlx.ablate --experiment=experiments/vqvae_codebook.py --workdir=runs/ablations

Results: experiments/results/vqvae_codebook.json (250 steps, 3 seeds).
"""

from vlx.ablate.experiment import Experiment

EXPERIMENT = Experiment(
  claim="A codebook moved by its loss is as good as one moved by averages.",
  config="configs/vqvae.py:ablation",
  arms={
    "loss": {"model.codebook": "loss", "model.restart_below": 0.0},
    "averages": {"model.codebook": "ema", "model.restart_below": 0.0},
    "averages, restarts": {"model.codebook": "ema", "model.restart_below": 0.2},
  },
  measures=tuple(
    f"reconstruction/{split}/{measure}"
    for split in ("combo", "concept")
    for measure in ("psnr", "codes_used", "perplexity")
  ),
)
