"""Names of classes by their ids, for zero-shot classification where records do not hold them.

ImageNet's are those that CLIP was tried with (Radford et al., 2021, §3.1.4): the synsets' own first
names are often ambiguous ("crane", "drake") or unusual.
"""

import importlib.resources

_FILE = importlib.resources.files("vlx.evaluate.tasks") / "imagenet_classes.txt"
IMAGENET = tuple(
  line for line in _FILE.read_text("utf-8").split("\n") if line and not line.startswith("#")
)
