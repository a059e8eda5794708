"""Do learned variances pay where there are few steps?

Nichol & Dhariwal, 2021, §4 and Figure 8: with variances learned by the hybrid loss 50 steps give nearly the FID of 4,000; with
fixed ones few steps are much worse by the large variance, beta, less so by the small.

  python -m vlx.ablate --experiment=experiments/ddpm_variance.py --workdir=runs/ablations
"""

from vlx.ablate.experiment import Experiment

STEPS = (5, 10, 25, 100)


def evaluators(**sampler) -> dict:
  return {
    f"steps_{steps}": dict(
      type="vlx.evaluate.tasks.fidelity.Fidelity",
      splits=("combo",),
      features="runs/clip_judge",
      count=404,
      sampler=dict(num_steps=steps, method="ancestral", **sampler),
    )
    for steps in STEPS
  }


EXPERIMENT = Experiment(
  claim="At few steps learned variances give a better FID than both fixed ones.",
  config="configs/ddpm.py:ablation",
  arms={
    "learned": {
      "model.process.learned_variance": True,
      "model.unet.channels": 6,
      "evaluators": evaluators(),
    },
    "fixed, small": {"evaluators": evaluators(variance=0.0)},
    "fixed, large": {"evaluators": evaluators(variance=1.0)},
  },
  measures=tuple(f"steps_{steps}/combo/samples/fid" for steps in STEPS),
)
