"""Does attention that is to see every place once caption better?

Xu et al., 2015, §4.2.1: λ Σ_i (1 − Σ_t α_ti)² "was important quantitatively to improving overall
BLEU score", qualitatively "this leads to more rich and descriptive captions"; λ = 1, without
figures. Here λ of 0 and 1 on scenes, above the tower of a finished run of
configs/show_attend_tell.py:scenes, frozen as theirs was.

The claim does not hold here: most of a scene is background, and no word is about most places.

  python -m vlx.ablate --experiment=experiments/caption_doubly_stochastic.py --workdir=runs/ablations

Results: experiments/results/caption_doubly_stochastic.json (250 steps, 3 seeds).
"""

from vlx.ablate.experiment import Experiment

EXPERIMENT = Experiment(
  claim="Doubly stochastic attention (λ = 1) captions better than attention without (λ = 0).",
  config="configs/show_attend_tell.py:ablation",
  arms={
    "0": {"model.doubly_stochastic": 0.0},
    "1": {"model.doubly_stochastic": 1.0},
    "1, as released": {"model.doubly_stochastic": 1.0, "model.penalty": "released"},
  },
  measures=(
    "captions/val/bleu4",
    "captions/val/cider_d",
    "captions/val/objects_right",
    "captions/val/exact",
    "pointing_game/val/inside",
    "pointing_game/val/pointing_accuracy",
  ),
)
