"""The defaults that every config starts from."""

from ml_collections.config_dict import placeholder

from vlx.core.config import ConfigDict

# The kernels of scanned blocks (leading axis: depth), split over `fsdp` and `tensor`; the rest is
# small.
TRANSFORMER_PARTITION = (
  (r"blocks/attention/(query|key|value)/kernel", (None, "fsdp", "tensor")),
  (r"blocks/attention/out/kernel", (None, "tensor", None, "fsdp")),
  (r"blocks/mlp/fc1/kernel", (None, "fsdp", "tensor")),
  (r"blocks/mlp/fc2/kernel", (None, "tensor", "fsdp")),
  (".*", ()),
)


def get_config() -> ConfigDict:
  """All sections with their defaults. Fill in `system`, `model`, `data`, `steps`, `optim.lr`."""
  config = ConfigDict()
  config.system = placeholder(str)  # import path of a System
  config.model = ConfigDict()  # the System's fields
  # Where variables start, dict(source=…, take=…, put=…, without=…, layers=…) each
  # (vlx.train.initialize).
  config.init = ()
  config.seed = 0
  config.steps = placeholder(int)
  config.log_every = 20

  config.data = dict(
    source=placeholder(str),  # KIND:PATH (vlx.data.sources)
    split="train",
    batch_size=256,
    preprocess="",  # ops that make a record an example of training (vlx.data.transforms)
    # ops that make an encoded image what the model takes: in evaluation, and anybody's image
    image_transform="",
    max_bad_records=100,  # so many are replaced by their neighbours; one more stops the run
    workers=0,  # processes that make batches; 0: threads of this one
    threads=1,
    prefetch=4,  # batches made ahead of the step
    # name → what a stream of its own has of source, split, batch_size, preprocess, and its weight
    streams={},
    mixture="by_step",  # how streams are put together (vlx.data.streams)
  )

  config.optim = dict(
    name="adamw",  # or "sgd", "rmsprop"
    lr=placeholder(float),
    schedule="cosine",
    warmup_steps=0,
    final_lr_ratio=0.0,
    # that the schedule is made for; 0: `steps`. With it a run may be given more steps later
    decay_steps=0,
    decay_every=0,  # steps; of the schedule "step"
    decay_factor=0.5,
    b1=0.9,  # Adam's; the momentum of SGD and RMSProp
    b2=0.999,  # Adam's; RMSProp's decay of the mean square
    eps=1e-8,
    weight_decay=0.0,
    # (pattern of a parameter's whole path, changes: lr_scale, weight_decay, average, frozen, dtype), merged over the
    # defaults, later ones over earlier ones. No decay on gains, biases, scalars.
    rules=((r".*(bias|scale|logit_\w*|cls|position_embedding)", dict(weight_decay=0.0)),),
    players={},  # of a system with players: name → what departs from this section
    clip_norm=1.0,  # 0: no clipping
    accumulate=1,  # parts that a batch is taken in, one after another
    # also where parts do not make up the whole (System.accumulates says why)
    accumulate_inexact=False,
    ema_decay=0.0,  # 0: no moving average
  )

  # -1: all devices that are left. Rules: (pattern, axis of the mesh for each axis of the array).
  config.mesh = dict(data=-1, fsdp=1, tensor=1)
  config.partition = ((".*", ()),)

  # patience: the run ends at an evaluation that finds its best so many steps old; 0: at `steps`
  config.checkpoint = dict(every=1000, keep=1, best="", patience=0)
  config.evaluators = ConfigDict()  # name → type (import path) and fields
  config.baselines = ConfigDict()  # "evaluator/split/measure" → number to beat
  return config
