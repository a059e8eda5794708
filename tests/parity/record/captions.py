"""Records pycocoevalcap's tokens and values on captions made here, with Java.

pip install --no-deps pycocoevalcap==1.2
python tests/parity/record/captions.py
"""

import json
import pathlib
import random

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

WHO = [
  "A man",
  "Two young women",
  "A brown dog",
  "The old farmer's cat",
  "Three children",
  "A girl in a red dress",
]
DOES = ["is riding", "are looking at", "stands next to", "jumps over", "is holding", "walks past"]
WHAT = [
  "a wave",
  "a blue bicycle",
  "the wooden fence",
  "some sheep",
  "a cake with candles",
  "an open laptop",
]
WHERE = [
  "on the beach",
  "in a park, near a lake",
  "at night",
  "in front of a house",
  "on a city street",
  "outside",
]


def sentence(rng, fixed) -> str:
  """A sentence of which each part is, by chance, that of the image."""
  parts = [
    own if rng.random() < 0.6 else rng.choice(others)
    for own, others in zip(fixed, (WHO, DOES, WHAT, WHERE))
  ]
  return " ".join(parts[: rng.choice((3, 4, 4))]) + rng.choice((".", "", " .", "!"))


def main():
  rng = random.Random(0)
  references, candidates = [], []
  for _ in range(60):
    fixed = [rng.choice(words) for words in (WHO, DOES, WHAT, WHERE)]
    references.append([sentence(rng, fixed) for _ in range(5)])
    candidates.append(sentence(rng, fixed))
  # What is apt to go wrong: nothing, a reference itself, words again and again, one word, many.
  candidates[0] = ""
  candidates[1] = references[1][0]
  candidates[2] = "a a a a the the the dog dog"
  candidates[3] = "dog"
  candidates[4] = " ".join([*references[4][0].split(), *references[4][1].split()])
  references[5] = references[5][:2]

  tokenize = PTBTokenizer().tokenize
  true = tokenize({i: [{"caption": c} for c in refs] for i, refs in enumerate(references)})
  said = tokenize({i: [{"caption": c or "."}] for i, c in enumerate(candidates)})
  values, each = {}, {}
  values["bleu"] = Bleu(4).compute_score(true, said, verbose=0)[0]
  short = {i: [" ".join(text.split()[:5]) for text in texts] for i, texts in said.items()}
  values["bleu_of_five_words"] = Bleu(4).compute_score(true, short, verbose=0)[0]
  for name, metric in (("rouge_l", Rouge()), ("cider_d", Cider()), ("meteor", Meteor())):
    values[name], scores = metric.compute_score(true, said)
    each[name] = [float(s) for s in scores]
  record = dict(
    candidates=candidates,
    references=references,
    tokens_said=[said[i][0] for i in range(len(said))],
    tokens_true=[true[i] for i in range(len(true))],
    values=values,
    each=each,
  )
  path = pathlib.Path(__file__).resolve().parents[1] / "captions.json"
  path.write_text(json.dumps(record, indent=1, default=float) + "\n")


if __name__ == "__main__":
  main()
