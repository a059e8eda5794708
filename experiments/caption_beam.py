"""What does a wide beam gain?

Vinyals et al., 2015, §4: beams of 20; greedy search "did degrade our results by 2 BLEU points on
average". Here each run is decoded by beams of 1, 3 and 20, so an arm is a seed's run, on scenes,
above the tower of a finished run of configs/show_and_tell.py:scenes.

The claim holds for BLEU, by more than two points; CIDEr-D and the things named right gain nothing. So
it is with the finished run of `scenes` (results/show_and_tell_scenes_beams.json).

  python -m vlx.ablate --experiment=experiments/caption_beam.py --workdir=runs/ablations

Results: experiments/results/caption_beam.json (600 steps, 3 seeds).
"""

from vlx.ablate.experiment import Experiment

EXPERIMENT = Experiment(
  claim="A beam of 20 is about two BLEU ahead of greedy search.",
  config="configs/show_and_tell.py:beams",
  arms={"show and tell": {}},
  measures=tuple(
    f"captions{beam}/val/{measure}"
    for measure in ("bleu4", "cider_d", "exact")
    for beam in ("", "_1", "_20")
  ),
)
