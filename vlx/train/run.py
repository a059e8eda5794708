"""What a config makes: system, data, mesh, state's shapes. Shared by training and evaluation."""

import dataclasses
import functools
import logging
import pathlib

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from vlx.core import config as configs
from vlx.core import distributed
from vlx.core import files
from vlx.data.transforms import augment  # registers its ops  # pylint: disable=unused-import
from vlx.data import batches, sources
from vlx.data.transforms import preprocess
from vlx.data.tokenizers import own as tokenizers
from vlx.core.errors import UserError
from vlx.core.system import System
from vlx.train import init_from, optimizer as optimizers, state as states
from vlx.core import checkpoint
from vlx.core import partition


@dataclasses.dataclass(frozen=True)
class Run:
  """A run's folder and config, and what follows from them."""

  config: ml_collections.ConfigDict
  workdir: pathlib.Path

  @functools.cached_property
  def system(self) -> System:
    return configs.build_system(self.config)

  @functools.cached_property
  def mesh(self) -> jax.sharding.Mesh:
    return partition.make_mesh(self.config.mesh)

  @functools.cached_property
  def tokenizer(self) -> tokenizers.Tokenizer | None:
    """The run folder's, made there on first use: read from CLIP's file, or learned from captions."""
    section = self.config.get("tokenizer")
    if not section:
      return None
    path = self.workdir / "tokenizer.json"
    if not path.exists():
      self._make_tokenizer(section).save(path)
    tokenizer = tokenizers.load(path)
    if tokenizer.vocab_size > section.vocab_size:
      raise UserError(
          f"tokenizer.vocab_size is {section.vocab_size}, but {path} has {tokenizer.vocab_size} tokens"
      )
    return tokenizer

  def _make_tokenizer(self, section) -> tokenizers.Tokenizer:
    kind = section.get("kind", "bpe")
    if kind not in ("bpe", "words"):
      raise UserError(f"tokenizer.kind is 'bpe' or 'words', not {kind!r}")
    if section.get("vocabulary"):
      return tokenizers.load_clip(section.vocabulary)
    texts = self.source(self.config.data.split).texts(section.fields)
    if kind == "words":
      return tokenizers.words(texts, section.vocab_size, section.min_count)
    return tokenizers.train(texts, section.vocab_size)

  def source(self, split: str) -> sources.Source:
    return sources.open_source(self.config.data.source, split)

  def examples(self, split: str, ops: str, *, bad_records: int = 0) -> batches.Examples:
    parsed = preprocess.parse(ops, self.tokenizer)
    return batches.Examples(self.source(split), parsed, bad_records)

  @functools.cached_property
  def batch_size(self) -> int:
    """Rows of a global batch; an error where the mesh and `optim.accumulate` do not divide them."""
    size, mesh = self.config.data.batch_size, dict(self.mesh.shape)
    if size % (mesh["data"] * mesh["fsdp"] * self.config.optim.accumulate):
      raise UserError(
          f"data.batch_size {size} is not divided by the mesh {mesh}"
          f" and optim.accumulate {self.config.optim.accumulate}"
      )
    return size

  @functools.cached_property
  def batches(self) -> batches.Batches:
    """Of training."""
    data = self.config.data
    rows = partition.own_rows(partition.batch_sharding(self.mesh), self.batch_size)
    examples = self.examples(data.split, data.preprocess, bad_records=data.bad_records)
    return batches.Batches(examples, data.batch_size, self.config.seed, rows=rows)

  def some_rows(self) -> dict[str, np.ndarray]:
    """At least one row of a batch, for the shapes."""
    return self.batches[0]

  @functools.cached_property
  def batch_shapes(self):
    """Shapes of a global batch on the devices."""
    sharding = partition.batch_sharding(self.mesh)
    device, _ = batches.split_host(self.some_rows())
    return {
        k: jax.ShapeDtypeStruct((self.batch_size, *v.shape[1:]), _canonical(v.dtype), sharding=sharding)
        for k, v in device.items()
    }

  @functools.cached_property
  def params_shapes(self):
    return jax.eval_shape(self.system.init, jax.random.key(0), self.batch_shapes)["params"]

  @functools.cached_property
  def optimizer(self) -> optax.GradientTransformation:
    return optimizers.make(self.config.optim, self.config.steps, self.params_shapes)

  def init_state(self, rng, batch) -> states.TrainState:
    averaged = bool(self.config.optim.ema_decay)
    return states.init(self.system, self.optimizer, rng, batch, averaged=averaged)

  @functools.cached_property
  def state_shapes(self) -> states.TrainState:
    """Shapes, dtypes and shardings of the whole state; no array is made."""
    shapes = jax.eval_shape(self.init_state, jax.random.key(0), self.batch_shapes)
    shardings = partition.state_shardings(self.config.partition, shapes, self.mesh)

    def placed(name, shape, sharding):
      try:
        sharding.shard_shape(shape.shape)
      except ValueError as e:
        raise UserError(
            f"the mesh {dict(self.mesh.shape)} does not divide {name} {list(shape.shape)}, which its"
            f" partition rule splits by {sharding.spec}"
        ) from e
      return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)

    return jax.tree.map(placed, partition.names(shapes), shapes, shardings)

  def fresh_state(self) -> states.TrainState:
    """A new state, each array made where it will live, or taken from where `config.init_from` says."""
    shardings = jax.tree.map(lambda s: s.sharding, self.state_shapes)

    def init(rng):
      zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), self.batch_shapes)
      return self.init_state(rng, zeros)

    state = jax.jit(init, out_shardings=shardings)(jax.random.key(self.config.seed))
    variables = {**state.variables, "state": self._with_parts(state.variables["state"])}
    if not self.config.get("init_from"):
      return state.replace(variables=variables)
    variables = init_from.replace(variables, self.config.init_from, self.mesh)
    copied = state.average and jax.tree.map(jnp.copy, variables["params"])
    return state.replace(variables=variables, average=copied)

  def _with_parts(self, state):
    """The system's `state` with the variables of the runs that its config names."""
    state = dict(state)
    for name, place in configs.parts(self.config).items():
      if ".py" in place:
        logging.warning("model.%s is %s: nothing has trained it", name, place)
        continue
      found = checkpoint.restore_variables(pathlib.Path(place), partition.replicated(self.mesh))
      described = lambda tree: jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", tree)
      if described(found) != described(state[name]):
        raise UserError(f"model.{name}: the checkpoint of {place} is not of the model in its config.json")
      state[name] = found
    return state

  def save_config(self) -> None:
    """Writes config.json, or compares with the one that is there.

    Raises:
      UserError: where the folder belongs to a run with another config; every difference is named.
    """
    path = self.workdir / "config.json"
    ours = configs.from_json(configs.to_json(self.config)).to_dict()
    if path.exists():
      theirs = configs.from_json(path.read_text()).to_dict()
      if changed := configs.differences(theirs, ours):
        raise UserError(
            f"{self.workdir} holds a run with another config ({'; '.join(changed)});"
            " name another --workdir, or remove this one"
        )
      return
    if distributed.is_first():
      files.write(path, configs.to_json(self.config))


def open_run(workdir: str) -> Run:
  """The run that a folder holds.

  Raises:
    UserError: where it holds none.
  """
  path = pathlib.Path(workdir) / "config.json"
  if not path.is_file():
    raise UserError(f"{workdir} holds no run: there is no config.json")
  return Run(configs.from_json(path.read_text()), pathlib.Path(workdir))


def _canonical(dtype: np.dtype) -> np.dtype:
  """The dtype an array of this dtype has on a device (JAX works in 32 bits)."""
  return jax.dtypes.canonicalize_dtype(dtype)
