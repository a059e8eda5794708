"""Figures with people's texts: none is a formula, none stops a run."""

import numpy as np
import pytest
from matplotlib import pyplot as plt

from vlx.evaluate.report import page, sheets

IMAGE = np.zeros((8, 8, 3), np.uint8)


@pytest.mark.parametrize(
  "text",
  (
    "costs $5 and $6",
    "a jar of cash $$",
    r"$\frac{$",
    "half a pair \ud83d",
    "\x00\x07\x1b[31m",
    "a\nb\tc\u2028d",
    "word " * 10_000,
    "",
    "{} %s \\n",
  ),
  ids=("dollars", "cash", "formula", "surrogate", "controls", "breaks", "long", "empty", "format"),
)
def test_any_text_can_stand_on_any_sheet(text, recwarn):
  for figure in (
    sheets.retrieval_sheet([(text, [(IMAGE, True)])], text),
    sheets.captions_sheet([(IMAGE, text, text)], text),
    sheets.attention_sheet([(IMAGE, np.ones((2, 2)), text)], text),
    sheets.words_sheet(IMAGE, [text], np.ones((1, 2, 2))),
    sheets.grid([[IMAGE / 255.0]], text),
  ):
    assert page.to_png(figure).startswith(b"\x89PNG")
    plt.close(figure)
