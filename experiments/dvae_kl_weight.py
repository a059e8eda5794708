"""Does a larger weight of the KL term put more codes to use?

Ramesh et al., 2021, appendix A.2: β is raised to 6.6; "this promotes better codebook usage and
ultimately leads to a *smaller* reconstruction error at the end of training". Here weights of 0, 1
and 6.6 on emoji.

That more codes are used holds by far; that images are given back better does not, in so short a run.

  python -m vlx.ablate --experiment=experiments/dvae_kl_weight.py --workdir=runs/ablations

Results: experiments/results/dvae_kl_weight.json (500 steps, 3 seeds).
"""

from vlx.ablate.experiment import Experiment

EXPERIMENT = Experiment(
  claim="With β = 6.6 more codes are used, and images are given back better, than with smaller β.",
  config="configs/dvae.py:ablation",
  arms={str(beta): {"model.beta": beta} for beta in (0.0, 1.0, 6.6)},
  measures=tuple(
    f"reconstruction/{split}/{measure}"
    for split in ("combo", "concept")
    for measure in ("psnr", "codes_used", "perplexity")
  ),
)
