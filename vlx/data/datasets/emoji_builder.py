"""The emoji data as a data set of TensorFlow Datasets, which takes a second to import and so is
asked for by name.
"""

import collections
import io
import pathlib

import tensorflow_datasets as tfds

from vlx.data.datasets import emoji


class Emoji(tfds.core.GeneratorBasedBuilder):
  """TFDS builder; `tfds.data_source("emoji", …)` reads what it wrote, as array_record."""

  VERSION = tfds.core.Version("1.0.0")

  def _info(self):
    return self.dataset_info_from_configs(
      description=__doc__,
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Image(shape=(None, None, 4), encoding_format="png"),
          "caption": tfds.features.Text(),
          "keywords": tfds.features.Sequence(tfds.features.Text()),
          "sequence": tfds.features.Text(),
          "base": tfds.features.Text(),
          "label": tfds.features.ClassLabel(names=list(emoji.GROUPS)),
          "style": tfds.features.ClassLabel(names=emoji.STYLES),
        }
      ),
      supervised_keys=None,
      homepage="https://unicode.org/emoji/",
    )

  def _split_generators(self, dl_manager):
    del dl_manager  # nothing is downloaded
    vendor = emoji.vendor_images()
    by_split = collections.defaultdict(list)
    for style, sequence, png in vendor:
      by_split[emoji.split_of(sequence)].append((style, sequence, png))
    trained = {sequence for _, sequence, _ in by_split["train"]}
    known = {sequence for _, sequence, _ in vendor}
    openmoji = emoji.openmoji_files()
    by_split["style"] = [("openmoji", s, p) for s, p in openmoji.items() if s in trained]
    by_split["style_new"] = [("openmoji", s, p) for s, p in openmoji.items() if s not in known]
    return {split: self._generate_examples(rows) for split, rows in by_split.items()}

  def _generate_examples(self, rows):
    for style, sequence, image in rows:
      group, keywords = emoji.annotation(sequence)
      png = emoji.render(image) if isinstance(image, pathlib.Path) else image
      yield (
        f"{style}-{sequence}",
        {
          "image": io.BytesIO(png),
          "caption": emoji.captions()[sequence],
          "keywords": keywords,
          "sequence": sequence,
          "base": emoji.base_concept(sequence),
          "label": group,
          "style": style,
        },
      )
