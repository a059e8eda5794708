"""Sheets of images, as figures."""

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from PIL import Image

RIGHT = "#1a9850"


def _readable(text: str) -> str:
  """People's text on a figure: in one line, without what is no character, at most 300 letters."""
  text = text.encode("utf-8", errors="replace").decode()
  return "".join(c if c.isprintable() else " " for c in text)[:300]


def _show(axis, image) -> None:
  axis.imshow(image)
  axis.set_xticks([])
  axis.set_yticks([])
  for spine in axis.spines.values():
    spine.set_color("#dddddd")


def retrieval_sheet(rows: list[tuple[str, list[tuple[np.ndarray, bool]]]], title: str) -> Figure:
  """One row per query: its text, then images; those marked True are framed."""
  columns = max(len(found) for _, found in rows)
  figure, axes = plt.subplots(
    len(rows),
    columns + 1,
    figsize=(2.6 + 0.9 * columns, 0.95 * len(rows) + 0.5),
    squeeze=False,
    gridspec_kw=dict(width_ratios=[2.6] + [0.9] * columns),
    layout="constrained",
  )
  figure.suptitle(_readable(title), fontsize=9)
  for row, (query, found) in zip(axes, rows):
    for axis in row:
      axis.axis("off")
    # Not wrap=True, which takes "$$" for a formula whatever `text.parse_math` says.
    asked = textwrap.fill(_readable(query), 42, max_lines=4, placeholder=" …")
    row[0].text(1.0, 0.5, asked, ha="right", va="center", fontsize=8)
    for axis, (image, right) in zip(row[1:], found):
      axis.axis("on")
      _show(axis, image)
      if right:
        for spine in axis.spines.values():
          spine.set(color=RIGHT, linewidth=3)
  return figure


def captions_sheet(
  items: list[tuple[np.ndarray, str, str]], title: str, columns: int = 5
) -> Figure:
  """Images with the caption beneath and, in gray, a reference above."""
  rows = -(-len(items) // columns)
  figure, axes = plt.subplots(
    rows, columns, figsize=(2.1 * columns, 2.9 * rows + 0.4), squeeze=False, layout="constrained"
  )
  figure.suptitle(_readable(title), fontsize=9)
  for axis in axes.flat[len(items) :]:
    axis.axis("off")
  for axis, (image, caption, reference) in zip(axes.flat, items):
    _show(axis, image)
    said, true = (
      textwrap.fill(_readable(t), 38, max_lines=4, placeholder=" …") for t in (caption, reference)
    )
    axis.set_xlabel(said, fontsize=7)
    axis.set_title(true, fontsize=6, color="#888888")
  return figure


def attention_sheet(items: list[tuple[np.ndarray, np.ndarray, str]], title: str) -> Figure:
  """Images above, the same with the attention map laid over them below."""
  figure, axes = plt.subplots(
    2, len(items), figsize=(1.1 * len(items), 2.9), squeeze=False, layout="constrained"
  )
  figure.suptitle(_readable(title), fontsize=9)
  for column, (image, attention, caption) in zip(axes.T, items):
    size = image.shape[1::-1]
    heat = Image.fromarray((255 * attention / attention.max()).astype(np.uint8))
    heat = np.asarray(heat.resize(size, Image.Resampling.BICUBIC)) / 255
    _show(column[0], image)
    short = caption if len(caption) < 19 else caption[:17] + "…"
    column[0].set_title(_readable(short), fontsize=6)
    _show(column[1], image)
    column[1].imshow(heat, cmap="inferno", alpha=0.6, vmin=0, vmax=1)
  return figure


def words_sheet(image: np.ndarray, words: list[str], maps: np.ndarray, columns: int = 8) -> Figure:
  """An image once for each word, lit where attention was: above all of it, below its likeliest cell
  alone.

  Xu et al., 2015, Figures 2 and 6-11.

  Args:
    image: uint8 `[H, W, 3]`.
    words: T of them.
    maps: `[T, rows, columns]`.
    columns: words side by side.
  """
  bands = -((len(words) + 1) // -columns)
  figure, axes = plt.subplots(
    2 * bands, columns, figsize=(1.3 * columns, 2.85 * bands), squeeze=False, layout="constrained"
  )
  for axis in axes.flat:
    axis.axis("off")
  _show(axes[0, 0], image)
  axes[1, 0].text(
    0.5, 0.5, "above: attention\nbelow: its\nlikeliest cell", ha="center", va="center", fontsize=8
  )
  for i, (word, weights) in enumerate(zip(words, maps), start=1):
    above, below = axes[2 * (i // columns) : 2 * (i // columns) + 2, i % columns]
    above.set_title(_readable(word), fontsize=9)
    _show(above, _lit(image, weights / weights.max(), Image.Resampling.BICUBIC))
    _show(below, _lit(image, weights == weights.max(), Image.Resampling.NEAREST))
  return figure


def _lit(image: np.ndarray, light: np.ndarray, resampling: Image.Resampling) -> np.ndarray:
  """An image in the dark, lit by a map in [0, 1]."""
  large = Image.fromarray(light.astype(np.float32)).resize(image.shape[1::-1], resampling)
  light = 0.2 + 0.8 * np.clip(np.asarray(large), 0, 1)
  return (image * light[..., None]).astype(np.uint8)


def grid(rows: list[Sequence[np.ndarray]], title: str) -> Figure:
  """Images `[N, H, W, 3]` in [-1, 1], a row for each array."""
  columns = max(map(len, rows))
  figure, axes = plt.subplots(
    len(rows),
    columns,
    figsize=(0.9 * columns, 0.9 * len(rows) + 0.4),
    squeeze=False,
    layout="constrained",
  )
  figure.suptitle(_readable(title), fontsize=9)
  for axis in axes.flat:
    axis.axis("off")
  for row, found in zip(axes, rows):
    for axis, image in zip(row, found):
      axis.axis("on")
      _show(axis, np.clip((image + 1) / 2, 0, 1))
  return figure


def captioned(captions: list[str], rows: np.ndarray, title: str) -> Figure:
  """Captions and their images `[rows, N, H, W, 3]` in [-1, 1]; the first of a row is framed: it
  is real.
  """
  return retrieval_sheet(
    [
      (caption, [(np.clip((image + 1) / 2, 0, 1), i == 0) for i, image in enumerate(row)])
      for caption, row in zip(captions, rows)
    ],
    title,
  )


def curves(
  panels: Mapping[str, Mapping[str, Sequence[float]]], x: Sequence[int], label: str, title: str
) -> Figure:
  """A panel per measure, a line in it for each of its series over `x`, which doubles from point
  to point.
  """
  figure, axes = plt.subplots(
    1, len(panels), figsize=(3.6 * len(panels), 3), squeeze=False, layout="constrained"
  )
  figure.suptitle(_readable(title), fontsize=9)
  for axis, (name, series) in zip(axes.flat, panels.items()):
    for split, values in series.items():
      axis.plot(x, values, marker="o", markersize=3, linewidth=1, label=split)
    axis.set_xscale("log", base=2)
    axis.set_xticks(x, labels=map(str, x))
    axis.set_xlabel(label, fontsize=8)
    axis.set_title(name, fontsize=8)
    axis.tick_params(labelsize=7)
  axes.flat[0].legend(fontsize=7)
  return figure
