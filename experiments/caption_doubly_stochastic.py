"""Does attention that is to see every place once caption better?

Xu et al., 2015, §4.2.1: λ Σ_i (1 − Σ_t α_ti)² "was important quantitatively to improving overall
BLEU score", qualitatively "this leads to more rich and descriptive captions"; λ = 1, without
figures. Here λ of 0 and 1 on scenes, above the tower of a finished run of
configs/show_attend_tell.py:scenes, frozen as theirs was.

250 steps, 3 seeds, `val`: BLEU-4 23.4 ± 0.9 with λ = 0, 21.0 ± 1.1 with 1, 21.3 ± 0.7 with the
released code's average; CIDEr-D 73.9 ± 7.4, 51.0 ± 9.6, 55.0 ± 8.7; attention inside the box of
what is named 32.4 ± 1.7, 20.5 ± 1.6, 23.1 ± 1.3 percent. The claim does not hold here: most of a
scene is background, and no word is about most places.

(python -m vlx.ablate --experiment=experiments/caption_doubly_stochastic.py --workdir=runs/ablations)
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
