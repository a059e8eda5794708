"""How much guidance, and in which part of the steps?

Ho & Salimans, 2022, Table 1: images fit their text better the stronger the guidance, and the FID is best at little.
Kynkäänniemi et al., 2024: guidance in the middle of the steps alone gives a better FID than guidance in all.

  python -m vlx.ablate --experiment=experiments/ldm_guidance.py --workdir=runs/ablations
"""

from vlx.ablate.experiment import Experiment

SCALES = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
SAMPLERS = {
  f"scale_{scale:g}".replace(".", "_"): dict(guidance_scale=scale) for scale in SCALES
} | {
  f"interval_{scale:g}": dict(guidance_scale=scale, guidance_interval=(0.2, 0.8))
  for scale in (2.0, 3.0, 5.0)
}
COMMON = dict(num_steps=20, method="dpm_solver")
JUDGES = dict(splits=("combo",), clip="runs/clip_judge", classifiers=("runs/groups", "runs/tones"))


def evaluators() -> dict:
  found = {}
  for name, sampler in SAMPLERS.items():
    how = dict(sampler={**COMMON, **sampler})
    found[name] = dict(
      JUDGES, **how, type="vlx.evaluate.tasks.generation.Generation", prompts=64, rows=4
    )
    found[f"{name}_fidelity"] = dict(
      how,
      type="vlx.evaluate.tasks.fidelity.Fidelity",
      splits=("combo",),
      features="runs/clip_judge",
      count=404,
    )
  return found


EXPERIMENT = Experiment(
  claim="The cosine with the text grows with guidance, while the FID has its best at little, and is better still in an interval.",
  config="configs/latent_diffusion.py:ablation",
  arms={"guided": {"evaluators": evaluators()}},
  measures=tuple(
    measure
    for name in SAMPLERS
    for measure in (
      f"{name}_fidelity/combo/samples/fid",
      *(f"{name}/combo/samples/{m}" for m in ("clip_cosine", "tones_accuracy", "border")),
    )
  ),
)
