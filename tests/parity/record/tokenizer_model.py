"""Records how the library sentencepiece splits texts with the model that PyPI's `mistral-common`
carries.

pip install sentencepiece==0.2.3 && pip install --no-deps mistral-common==1.13.1
python tests/parity/record/tokenizer_model.py
"""

import importlib.metadata
import importlib.util
import json
import pathlib

import sentencepiece

MODEL = "data/tokenizer.model.v1"
TEXTS = (
  "Hello world",
  "  two  spaces ",
  "don't stop\n\n\tnow",
  "naïve café 東京 🦊🦊",
  "1234567 apples, 3.14",
  "a",
  "",
  "def f(x):\n    return x ** 2",
  "Ünïcödé ﬁn ½",
  "internationalization of antidisestablishmentarianism",
)

if __name__ == "__main__":
  folder = pathlib.Path(importlib.util.find_spec("mistral_common").origin).parent
  model = sentencepiece.SentencePieceProcessor(model_file=str(folder / MODEL))
  ids = [model.encode(text, add_bos=True) for text in TEXTS]
  recorded = dict(
    model=MODEL,
    version=importlib.metadata.version("sentencepiece"),
    texts=TEXTS,
    ids=ids,
    decoded=[model.decode(i) for i in ids],
  )
  file = pathlib.Path(__file__).resolve().parents[1] / "tokenizer_model.json"
  file.write_text(json.dumps(recorded, indent=1, ensure_ascii=False) + "\n")
