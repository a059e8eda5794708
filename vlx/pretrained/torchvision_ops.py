"""The preprocessing of torchvision's classifiers: its preset `ImageClassification`, as a
preprocessing string.
"""


def torchvision_ops(
  mean: tuple[float, float, float] = (0.5, 0.5, 0.5),
  std: tuple[float, float, float] = (0.5, 0.5, 0.5),
) -> str:
  """Those of its first weights (`IMAGENET1K_V1`); for the second it takes a larger shorter side,
  by model.
  """
  return f"decode|resize_small(256, method='bilinear')|central_crop(224, half='even')|normalize({mean}, {std})"
