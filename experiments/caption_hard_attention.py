"""Does hard attention caption better than soft?

Xu et al., 2015, Table 1: on Flickr8k and COCO hard attention is ahead in BLEU-4 (21.3 against 19.5,
25.0 against 24.3), in METEOR on Flickr8k alone. Here on scenes, above the tower of a finished run
of configs/show_attend_tell.py:scenes, frozen as theirs was. The arms of hard attention differ in
how captions are made: by the expectation, as the released code does, or by the likeliest place.

In so short a run the claim does not hold: a gradient of samples learns later where to look, and in
one seed more than in another.

  python -m vlx.ablate --experiment=experiments/caption_hard_attention.py --workdir=runs/ablations

Results: experiments/results/caption_hard_attention.json (250 steps, 3 seeds).
"""

from vlx.ablate.experiment import Experiment

EXPERIMENT = Experiment(
  claim="Hard attention captions better than soft.",
  config="configs/show_attend_tell.py:ablation",
  arms={
    "soft": {},
    "hard, expected": {"model.selection": "hard"},
    "hard, argmax": {"model.selection": "hard", "model.decode_attention": "argmax"},
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
