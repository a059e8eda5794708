"""Capabilities: protocols that say what a system can do; the only thing that evaluators, commands
and other systems ask of one.

One verb, one shape, everywhere. All methods are deterministic pure functions; `v` are the system's
variables. Images are f32 `[B, H, W, 3]` as the run's `data.image_transform` makes them, those that
come out in [-1, 1].
"""

import inspect
from collections.abc import Mapping
from typing import Any, Protocol, TypeGuard, TypeVar, runtime_checkable

import jax
from jaxtyping import Array, Bool, Float, Int

from vlx.core.errors import UserError
from vlx.core.system import Variables

C = TypeVar("C")
Inputs = Mapping[str, jax.Array]
Image = Float[Array, "batch height width 3"]


@runtime_checkable
class Classifies(Protocol):
  """Tells classes apart."""

  def class_logits(self, v: Variables, image: Image) -> Float[Array, "batch classes"]: ...


@runtime_checkable
class EmbedsImages(Protocol):
  """One vector for an image, not normalised."""

  def embed_image(self, v: Variables, image: Image) -> Float[Array, "batch dim"]: ...


@runtime_checkable
class EmbedsText(Protocol):
  """One vector for a text, not normalised; texts up to `text_length` tokens."""

  @property
  def text_length(self) -> int: ...

  @property
  def vocab_size(self) -> int: ...

  def embed_text(
    self, v: Variables, text: Int[Array, "batch length"], text_mask: Bool[Array, "batch length"]
  ) -> Float[Array, "batch dim"]: ...


@runtime_checkable
class ComparesEmbeddings(Protocol):
  """Ranks pairs of image and text by something else than the cosine of their embeddings."""

  def similarity(
    self, image: Float[Array, "images dim"], text: Float[Array, "texts dim"]
  ) -> Float[Array, "images texts"]: ...


@runtime_checkable
class EncodesImages(Protocol):
  """A vector for each position of an image: for cross-attention, LLaVA, perceptual losses."""

  def encode_image(
    self, v: Variables, image: Image, *, layer: int = -1
  ) -> Float[Array, "batch places dim"]: ...


@runtime_checkable
class EncodesText(Protocol):
  """A vector for each token."""

  def encode_text(
    self, v: Variables, text: Int[Array, "batch length"], text_mask: Bool[Array, "batch length"]
  ) -> Float[Array, "batch length dim"]: ...


@runtime_checkable
class MapsFeatures(Protocol):
  """Maps of several layers of a convolutional network, each before the size is halved."""

  def feature_maps(
    self, v: Variables, image: Image
  ) -> tuple[Float[Array, "batch _rows _columns _features"], ...]: ...


@runtime_checkable
class ComparesImages(Protocol):
  """How different two images look, row by row; 0 for equal ones."""

  def image_distance(self, v: Variables, image: Image, other: Image) -> Float[Array, " batch"]: ...


@runtime_checkable
class ScoresPairs(Protocol):
  """How well an image and a text fit, row by row; cross-encoders too."""

  def pair_scores(self, v: Variables, batch: Inputs) -> Float[Array, " batch"]: ...


@runtime_checkable
class TokenizesImages(Protocol):
  """A grid of codes of an image, and an image of codes."""

  num_codes: int
  image_size: int

  @property
  def grid(self) -> tuple[int, int]:
    """Rows and columns of the codes of an image of `image_size`."""
    ...

  def image_to_tokens(self, v: Variables, image: Image) -> Int[Array, "batch rows columns"]: ...

  def tokens_to_image(self, v: Variables, tokens: Int[Array, "batch rows columns"]) -> Image: ...


@runtime_checkable
class Reconstructs(Protocol):
  """Gives an image back from what it keeps of it."""

  def reconstruct(self, v: Variables, image: Image) -> Image: ...


@runtime_checkable
class Autoencodes(Protocol):
  """Continuous latents of an image, and an image of them.

  A vector is `[batch, 1, 1, dim]`. `rng` is for a sample of the posterior; `reconstruct` takes its
  mean.
  """

  def encode_latents(
    self, v: Variables, image: Image, rng: jax.Array
  ) -> Float[Array, "batch rows columns dim"]: ...

  def decode_latents(
    self, v: Variables, latents: Float[Array, "batch rows columns dim"]
  ) -> Image: ...


@runtime_checkable
class GeneratesImages(Protocol):
  """Samples images, each a function of its inputs and its seed alone, whatever the batch."""

  # A frozen dataclass of its own: temperature, …, or num_steps, eta, guidance_scale, …
  Sampler: type

  def sample_inputs(self) -> dict[str, jax.ShapeDtypeStruct]:
    """One example of what is sampled from, without a batch axis; empty where nothing is asked
    for.
    """
    ...

  def sample_images(
    self, v: Variables, inputs: Inputs, seeds: Int[Array, " batch"], sampler: Any
  ) -> Image: ...


@runtime_checkable
class ChangesImages(GeneratesImages, Protocol):
  """Samples from an `image` among the inputs too, where there is one; its sampler says what is left of it (where it
  has a `strength`: nothing at 1).

  Where `takes_mask`, a `mask` `[batch, height, width, 1]` may say by 1 where alone something new is wanted.
  """

  takes_mask: bool


@runtime_checkable
class MovesImages(ChangesImages, Protocol):
  """Samples on the way from an `image` to another, `towards`, or along a change of text, from `from_text` and
  `from_text_mask` to `text`; `share` `[batch]`, 0 at the image, says how far.
  """

  moves_images: bool


@runtime_checkable
class SamplesWithoutText(GeneratesImages, Protocol):
  """Samples of a text, and of none."""

  def empty_inputs(self) -> dict[str, Any]:
    """What stands for no text, one example, without a batch axis."""
    ...


@runtime_checkable
class FilmsSampling(GeneratesImages, Protocol):
  """Shows how its samples come about: frames, of which the last is the sample."""

  def sample_film(
    self, v: Variables, inputs: Inputs, seeds: Int[Array, " batch"], sampler: Any
  ) -> Float[Array, "batch frames height width 3"]: ...


@runtime_checkable
class SamplesImageEmbeddings(Protocol):
  """A prior: samples embeddings of images."""

  Sampler: type

  def sample_inputs(self) -> dict[str, jax.ShapeDtypeStruct]: ...

  def sample_image_embeddings(
    self, v: Variables, inputs: Inputs, seeds: Int[Array, " batch"], sampler: Any
  ) -> Float[Array, "batch dim"]: ...


@runtime_checkable
class CaptionsImages(Protocol):
  """The likeliest captions of an image, best first, by a `vlx.inference.decoding.Search`."""

  start_id: int
  end_id: int

  def caption(
    self, v: Variables, inputs: Inputs, search: Any
  ) -> tuple[Int[Array, "batch beam length"], Float[Array, "batch beam"]]: ...


@runtime_checkable
class AnswersQuestions(Protocol):
  """Classifies the answer to a question about an image."""

  def answer_logits(self, v: Variables, inputs: Inputs) -> Float[Array, "batch answers"]: ...


@runtime_checkable
class GeneratesText(Protocol):
  """Continues texts, or texts with images among them, with a cache: several turns go on in the
  same one.
  """

  @property
  def context_length(self) -> int: ...

  @property
  def vocab_size(self) -> int: ...

  def for_decoding(self, v: Variables) -> tuple["GeneratesText", Variables]:
    """The same model in the form that decodes fastest."""
    ...

  def empty_cache(self, batch: int, slots: int) -> Any:
    """For `batch` texts of up to `slots` positions; its `lengths` are those that it holds of
    each.
    """
    ...

  def extend_cache(
    self, v: Variables, inputs: Inputs, cache: Any
  ) -> tuple[Float[Array, "batch vocab"], Any]:
    """Reads `text` and `text_mask` (and images, where it sees): logits of what comes after each
    row, the cache.
    """
    ...


@runtime_checkable
class SeesImages(GeneratesText, Protocol):
  """A language model whose `extend_cache` takes an `image` of each row with the prompt.

  In the text it stands where `image_id` is, `image_tokens` times.
  """

  image_id: int
  image_tokens: int


@runtime_checkable
class DetectsObjects(Protocol):
  """A fixed number of boxes, with their scores, class probabilities and features."""

  def detect(self, v: Variables, image: Image) -> Mapping[str, jax.Array]: ...


@runtime_checkable
class ShowsAttention(Protocol):
  """Where it looks: at all, or at each token of a text."""

  def attention_maps(
    self, v: Variables, inputs: Inputs
  ) -> Float[Array, "batch *tokens rows columns"]: ...


ALL = (
  Classifies,
  EmbedsImages,
  EmbedsText,
  ComparesEmbeddings,
  EncodesImages,
  EncodesText,
  MapsFeatures,
  ComparesImages,
  ScoresPairs,
  TokenizesImages,
  Reconstructs,
  Autoencodes,
  GeneratesImages,
  ChangesImages,
  MovesImages,
  SamplesWithoutText,
  FilmsSampling,
  SamplesImageEmbeddings,
  CaptionsImages,
  AnswersQuestions,
  GeneratesText,
  SeesImages,
  DetectsObjects,
  ShowsAttention,
)


def has(system: Any, capability: type[C]) -> TypeGuard[C]:
  """Whether a system can do this."""
  return isinstance(system, capability)


def of(system: Any) -> list[str]:
  """The names of what a system can do."""
  return [c.__name__ for c in ALL if isinstance(system, c)]


def unfinished(system: Any) -> list[str]:
  """A line for each capability of which a system has a method, but not all: "sample_images without
  Sampler (GeneratesImages)".
  """
  lines = []
  for capability in ALL:
    own = {*vars(capability), *inspect.get_annotations(capability)}
    members = sorted(name for name in own if not name.startswith("_"))
    lacking = [name for name in members if not hasattr(system, name)]
    methods = [name for name in members if inspect.isfunction(vars(capability).get(name))]
    there = [name for name in methods if name not in lacking and name != "sample_inputs"]
    if there and lacking:
      lines.append(f"{', '.join(there)} without {', '.join(lacking)} ({capability.__name__})")
  return lines


def listed(system: Any) -> str:
  """What a system can do, and has begun to be able to, for messages."""
  can = ", ".join(of(system)) or "none of the capabilities of vlx.core.capabilities"
  return "; ".join([can, *unfinished(system)])


def require(system: Any, *capabilities: type, what: str = "") -> None:
  """Raises `UserError` where a system cannot do all of this; the message says what it can do.

  Args:
    system: to be asked.
    capabilities: protocols of this module.
    what: who asks, or what holds the system: the message begins with it.
  """
  lacking = [c for c in capabilities if not isinstance(system, c)]
  if lacking:
    purpose = lambda c: " ".join(inspect.cleandoc(c.__doc__ or "").partition("\n\n")[0].split())
    said = "; ".join(f"{c.__name__} ({purpose(c)})" for c in lacking)
    raise UserError(
      f"{f'{what}: ' if what else ''}{type(system).__name__} lacks {said} It has: {listed(system)}"
    )
