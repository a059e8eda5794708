"""Does attention need an MLP, or is a bilinear form enough?

Xu et al., 2015, score places by an MLP (after Bahdanau et al., 2014) and compare with nothing;
Luong et al., 2015, find the bilinear hᵀ W a as good in translation. Here both on scenes, above the
tower of a finished run of configs/show_attend_tell.py:scenes, frozen as theirs was.

250 steps, 3 seeds, `val`: BLEU-4 23.4 ± 0.9 by the MLP, 19.4 ± 1.7 by the bilinear form; CIDEr-D
73.9 ± 7.4, 40.6 ± 15.0; things named right 24.6 ± 4.3, 10.6 ± 7.5 percent; likeliest place inside
the box 42.7 ± 0.8, 31.6 ± 7.4. The claim holds in so short a run, above a tower that an MLP's
attention was trained with.

(python -m vlx.ablate --experiment=experiments/caption_attention_score.py --workdir=runs/ablations)
"""

from vlx.ablate.experiment import Experiment

EXPERIMENT = Experiment(
  claim="An MLP scores places better than a bilinear form.",
  config="configs/show_attend_tell.py:ablation",
  arms={"mlp": {"model.attention": "mlp"}, "bilinear": {"model.attention": "bilinear"}},
  measures=(
    "captions/val/bleu4",
    "captions/val/cider_d",
    "captions/val/objects_right",
    "captions/val/exact",
    "pointing_game/val/inside",
    "pointing_game/val/pointing_accuracy",
  ),
)
