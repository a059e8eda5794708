"""Should the LSTM see the image once, or at every word?

Vinyals et al., 2015, §3.1: "We empirically verified that feeding the image at each time step as an
extra input yields inferior results, as the network can explicitly exploit noise in the image and
overfits more easily." Without figures. Here both on scenes, above the tower of a finished run of
configs/show_and_tell.py:scenes, frozen as theirs was.

In so short a run the claim does not hold: what is seen once has to be remembered first, and there is
nothing to overfit to yet.

  python -m vlx.ablate --experiment=experiments/caption_image_input.py --workdir=runs/ablations

Results: experiments/results/caption_image_input.json (600 steps, 3 seeds).
"""

from vlx.ablate.experiment import Experiment

EXPERIMENT = Experiment(
  claim="An image that is seen once is described better than one that is seen at every word.",
  config="configs/show_and_tell.py:ablation",
  arms={"once": {"model.image_input": "first"}, "every": {"model.image_input": "every"}},
  measures=(
    "captions/val/bleu4",
    "captions/val/cider_d",
    "captions/val/objects_right",
    "captions/val/exact",
    "captions/combo/bleu4",
    "captions/combo/objects_right",
  ),
)
