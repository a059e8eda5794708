"""Public checkpoints, in and out: one table of names per family, one reader per format."""

from vlx.pretrained.load import Checkpoint, Pretrained, load, open_checkpoint
