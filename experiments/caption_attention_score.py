"""Does attention need an MLP, or is a bilinear form enough?

Xu et al., 2015, score places by an MLP (after Bahdanau et al., 2014) and compare with nothing;
Luong et al., 2015, find the bilinear hᵀ W a as good in translation. Here both on scenes, above the
tower of a finished run of configs/show_attend_tell.py:scenes, frozen as theirs was.

The claim holds in so short a run, above a tower that an MLP's attention was trained with.

  python -m vlx.ablate --experiment=experiments/caption_attention_score.py --workdir=runs/ablations

Results: experiments/results/caption_attention_score.json (250 steps, 3 seeds).
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
