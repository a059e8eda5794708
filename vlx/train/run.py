"""A run: what its config makes, as shapes first; its folder; its first state."""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import optax

from vlx.core import capabilities, checkpoint, partition, trust
from vlx.core import config as configs
from vlx.core import system as systems
from vlx.core.config import ConfigDict
from vlx.core.errors import UserError
from vlx.core.system import Prepares, Trains, Variables, flatten
from vlx.data import batches, sources, tokenizers
from vlx.data.streams import Streams
from vlx.data.transforms import preprocess
from vlx.train import going_on, initialize
from vlx.train import optimizer as optimizers
from vlx.train import state as states
from vlx.train import step as steps
from vlx.train.state import Roles, TrainState
from vlx.train.step import Player

# Numbers of a config, and the least and the most that they may be.
BOUNDS = {
  "steps": (0, 2**31 - 1),
  "seed": (0, 2**32 - 1),
  "log_every": (1, None),
  "data.batch_size": (1, None),
  "data.max_bad_records": (0, None),
  "data.workers": (0, None),
  "data.threads": (1, None),
  "data.prefetch": (1, None),
  "optim.accumulate": (1, None),
  "optim.warmup_steps": (0, None),
  "optim.clip_norm": (0, None),
  "optim.ema_decay": (0, 1),
  "checkpoint.every": (1, None),
  "checkpoint.keep": (1, None),
  "checkpoint.patience": (0, None),
}


def check_numbers(config: ConfigDict) -> None:
  """Raises `UserError` for a number that makes no sense."""
  for name, (least, most) in BOUNDS.items():
    section, _, field = name.rpartition(".")
    # a folder's own config may be of before the field
    value = (config[section] if section else config).get(field, least)
    if value is None or value < least or (most is not None and value > most):
      upper = "" if most is None else f" and at most {most}"
      raise UserError(f"{name} must be at least {least}{upper}, not {value}")


@dataclasses.dataclass(frozen=True)
class Run:
  """A run's folder and what was asked for, and what follows from them; no array is made until
  `fresh`.
  """

  requested: ConfigDict
  workdir: pathlib.Path

  @functools.cached_property
  def config(self) -> ConfigDict:
    """Resolved: from the folder where it holds this run already, else from the sources of its
    parts.
    """
    trust.trust_named(self.requested.to_dict())
    check_numbers(self.requested)
    if (self.workdir / "config.json").is_file():
      return going_on.config(configs.read(self.workdir), self.requested, self.workdir)
    return initialize.resolve(self.requested)

  @functools.cached_property
  def system(self) -> Trains:
    system: Any = configs.build_system(self.config)
    if self.config.steps:  # with none, a run only puts parts together
      capabilities.require(system, Trains)
    return system

  @functools.cached_property
  def mesh(self) -> jax.sharding.Mesh:
    return partition.make_mesh(self.config.mesh)

  # Data.

  @functools.cached_property
  def tokenizer(self) -> tokenizers.Tokenizer | None:
    """The run folder's, made there on first use as the config's `tokenizer` says."""
    section = self.config.get("tokenizer")
    if not section:
      return None
    path = self.workdir / "tokenizer.json"
    if not path.exists():
      texts = lambda: self.streams.texts(section.fields)
      of_parts = section.get("kind") == "parts"
      made = (
        initialize.tokenizer_of_parts(self.config) if of_parts else tokenizers.make(section, texts)
      )
      made.save(path)
    tokenizer = tokenizers.load(path)
    if tokenizer.vocab_size > section.vocab_size:
      raise UserError(
        f"tokenizer.vocab_size is {section.vocab_size}, but {path} has {tokenizer.vocab_size} tokens"
      )
    return tokenizer

  @functools.cached_property
  def streams(self) -> Streams:
    """An error where the mesh and `optim.accumulate` do not divide their batches."""
    found, mesh, accumulate = (
      Streams.of(self.config.data),
      dict(self.mesh.shape),
      self.config.optim.accumulate,
    )
    for name, stream in found.by_name.items():
      if stream.batch_size % (mesh["data"] * mesh["fsdp"] * accumulate):
        raise UserError(
          f"data.{f'streams.{name}.' if name else ''}batch_size {stream.batch_size} must be a multiple of the mesh"
          f" {mesh} and optim.accumulate {accumulate}"
        )
    return found

  @functools.cached_property
  def batches(self) -> batches.ByStep:
    """The batches of training."""
    seeds = self.streams.seeds(self.config.seed)

    def of(name, stream):
      rows = partition.local_rows(partition.batch_sharding(self.mesh), stream.batch_size)
      examples = batches.Examples(
        sources.open_source(stream.source, stream.split),
        preprocess.parse(stream.preprocess, self.tokenizer),
        self.config.data.max_bad_records,
      )
      return batches.Batches(examples, stream.batch_size, seeds[name], rows=rows)

    return self.streams.combine(
      {name: of(name, stream) for name, stream in self.streams.by_name.items()}
    )

  def check_batch(self, batch: Mapping[str, np.ndarray]) -> None:
    """Raises `UserError` where the data's batches are not what the system takes; every misfit is
    named.
    """
    described = lambda shape, dtype: f"{jax.dtypes.canonicalize_dtype(dtype)}{list(shape)}"
    given = {name: described(x.shape[1:], x.dtype) for name, x in batch.items()}
    lines = [
      f"{name} {described(s.shape, s.dtype)} (here {given.get(name, 'nothing')})"
      for name, s in flatten(self.system.inputs()).items()
      if given.get(name) != described(s.shape, s.dtype)
    ]
    if lines:
      raise UserError(
        f"data.preprocess does not make the examples that {type(self.system).__name__} takes: {'; '.join(lines)}"
      )

  @functools.cached_property
  def batch_shapes(self) -> dict[str, Any]:
    """The shapes of a global batch on the devices, nested as the system's inputs are."""
    sharding = partition.batch_sharding(self.mesh)
    return systems.unflatten(
      {
        name: jax.ShapeDtypeStruct((self.streams.rows(name), *s.shape), s.dtype, sharding=sharding)
        for name, s in flatten(self.system.inputs()).items()
      }
    )

  def on_devices(self, batch: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The system's inputs from this process's rows, as global arrays."""
    self.check_batch(batch)
    return systems.unflatten(
      {
        name: partition.make_global_array(batch[name], s.sharding, s.shape[0])
        for name, s in flatten(self.batch_shapes).items()
      }
    )

  # Who learns.

  @functools.cached_property
  def shapes(self) -> Variables:
    """The shapes of all variables, parts and all."""
    return systems.variable_shapes(self.system)

  @functools.cached_property
  def learning(self) -> dict[str, optimizers.Learning]:
    return optimizers.learning(self.config.optim, self.shapes["params"], self.system)

  @functools.cached_property
  def roles(self) -> Roles:
    frozen = frozenset(path for path, one in self.learning.items() if one.frozen)
    subtrees = optimizers.frozen_subtrees(self.learning)
    return states.roles(
      self.system, systems.names(self.shapes), frozen, subtrees, steps.players_of(self.system)
    )

  @functools.cached_property
  def players(self) -> dict[str, Player]:
    return steps.players(
      self.system, self.config.optim, self.roles, self.learning, self.config.steps
    )

  def check_accumulation(self) -> None:
    """Raises `UserError` where a batch taken in parts would be another one, and nobody said that
    this is wanted.
    """
    optim = self.config.optim
    if optim.accumulate > 1 and not optim.accumulate_inexact and (why := self.system.accumulates()):
      raise UserError(
        f"optim.accumulate={optim.accumulate}: the parts of a batch do not make up the whole ({why});"
        " optim.accumulate_inexact=True takes them all the same"
      )

  # Shapes and shardings of what a step takes.

  @functools.cached_property
  def variable_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
    """Name → shape, dtype and sharding of every variable."""
    params = partition.shardings(self.config.partition, self.shapes["params"], self.mesh)
    shardings = {f"params/{n}": s for n, s in flatten(params).items()}
    replicated = partition.replicated(self.mesh)
    dtypes = {f"params/{path}": one.dtype for path, one in self.learning.items() if one.dtype}
    return {
      name: jax.ShapeDtypeStruct(
        s.shape, dtypes.get(name, s.dtype), sharding=shardings.get(name, replicated)
      )
      for name, s in flatten(self.shapes).items()
    }

  @functools.cached_property
  def _split_shapes(self) -> tuple[Variables, Variables]:
    return self.roles.split(jax.tree.map(self.variable_shapes.__getitem__, self.roles.names))

  @property
  def frozen_shapes(self) -> Variables:
    """The shapes of the frozen variables."""
    return self._split_shapes[1]

  @functools.cached_property
  def state_shapes(self) -> TrainState:
    """The shapes of the training state: moments and averages lie as the parameters that they mirror."""
    moving = self._split_shapes[0]
    shapes = jax.eval_shape(self._init_state, moving)
    shardings = {n: s.sharding for n, s in flatten(moving["params"]).items()}
    replicated = partition.replicated(self.mesh)

    def mirrored(name, optimizer):
      own = self.roles.params_of(name, systems.unflatten(shardings))
      return optax.tree_map_params(
        self.players[name].optimizer,
        lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding),
        optimizer,
        own,
        transform_non_params=lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=replicated),
      )

    average = {
      n: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=shardings[n])
      for n, s in flatten(shapes.average).items()
    }

    def scalar(s) -> Any:
      return jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=replicated)

    return TrainState(
      step=scalar(shapes.step),
      variables=moving,
      average=systems.unflatten(average),
      finite=scalar(shapes.finite),
      optimizer={name: mirrored(name, o) for name, o in shapes.optimizer.items()},
    )

  def _init_state(self, moving: Variables) -> TrainState:
    averaged = frozenset().union(*(player.averaged for player in self.players.values()))
    return states.init(
      moving, {n: p.optimizer for n, p in self.players.items()}, self.roles, averaged
    )

  # Arrays.

  def fresh(self) -> tuple[TrainState, Variables]:
    """(a new state, what is frozen), each array made where it will live, or taken from where the config says."""
    rng = jax.random.key(self.config.seed)
    system = self.system
    # What a system prepares by itself may be among it.
    frozen = frozenset() if capabilities.has(system, Prepares) else self.roles.frozen
    flat = initialize.variables(system, self.config, self.variable_shapes, rng, frozen=frozen)
    variables = jax.tree.map(flat.__getitem__, self.roles.names)
    if capabilities.has(system, Prepares):
      variables = system.prepare(variables, _OnDevices(self), jax.random.fold_in(rng, 1))
      flat = flatten(variables)
      variables = jax.tree.map(
        lambda name: jax.device_put(flat[name], self.variable_shapes[name].sharding),
        self.roles.names,
      )
    moving, frozen = self.roles.split(variables)
    shardings = jax.tree.map(lambda s: s.sharding, self.state_shapes)
    return jax.jit(self._init_state, out_shardings=shardings)(moving), frozen

  def stored_frozen(self) -> Variables:
    """The frozen variables, from the folder."""
    found = checkpoint.read_frozen(self.workdir, flatten(self.frozen_shapes))
    return jax.tree.map(found.__getitem__, systems.names(self.frozen_shapes))

  def frozen_in_checkpoint(self) -> Variables:
    """The same from a checkpoint of schema 1."""
    parts = tuple(systems.parts(self.system))
    found = checkpoint.RunVariables(self.workdir, parts).read(flatten(self.frozen_shapes))
    return jax.tree.map(found.__getitem__, systems.names(self.frozen_shapes))

  def variables(self, state: TrainState, frozen: Variables) -> Variables:
    """Those of inference: averaged where there is an average."""
    return self.roles.merge(state.for_inference, frozen)


@dataclasses.dataclass(frozen=True)
class _OnDevices:
  """The run's batches, as `System.prepare` asks for them."""

  run: Run

  def __getitem__(self, step: int) -> dict[str, Any]:
    device, _ = batches.split_host(self.run.batches[step])
    return self.run.on_devices(device)


def open_run(workdir: str) -> Run:
  """The run that a folder holds.

  Raises:
    UserError: where it holds none.
  """
  folder = pathlib.Path(workdir)
  return Run(configs.read(folder).requested, folder)
