"""Does the text's loss help or hurt the images?

Ramesh et al., 2021, §2.2: "we multiply the cross-entropy losses of the text by 1/8 and of the image
by 7/8", for images are what they care about; without figures. Here weights of 0, 1/8 and 1/2 on
emoji, above the tokenizer of configs/vqvae.py:ablation.

The claim holds; at 1/8 the text costs the images nothing, and helps them no more.

  python -m vlx.ablate --experiment=experiments/dalle_text_weight.py --workdir=runs/ablations

Results: experiments/results/dalle_text_weight.json (300 steps, 3 seeds).
"""

from vlx.ablate.experiment import Experiment

EXPERIMENT = Experiment(
  claim="A text weight of 1/8 models the codes better than equal weights do.",
  config="configs/dalle.py:ablation",
  arms={"0": {"model.text_weight": 0.0}, "1/8": {}, "1/2": {"model.text_weight": 0.5}},
  measures=tuple(f"loss/{split}/image" for split in ("train", "combo", "concept")),
)
