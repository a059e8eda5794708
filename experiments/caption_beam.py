"""What does a wide beam gain?

Vinyals et al., 2015, §4: beams of 20; greedy search "did degrade our results by 2 BLEU points on
average". Here each run is decoded by beams of 1, 3 and 20, so an arm is a seed's run, on scenes,
above the tower of a finished run of configs/show_and_tell.py:scenes.

600 steps, 3 seeds, `val`: BLEU-4 11.2 ± 1.1, 11.0 ± 0.4 and 17.3 ± 1.0 with 1, 3 and 20 beams;
CIDEr-D 12.5 ± 1.6, 14.2 ± 1.2, 11.8 ± 0.9. The finished run of `scenes` (python -m vlx.evaluate
--workdir=runs/show_and_tell --config=configs/show_and_tell.py:beams, one seed): BLEU-4 17.4, 18.3,
22.4; CIDEr-D 54.5, 56.6, 56.0. The claim holds for BLEU, by more than two points; CIDEr-D and the
things named right gain nothing.

(python -m vlx.ablate --experiment=experiments/caption_beam.py --workdir=runs/ablations)
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
