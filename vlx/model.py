"""A model that somebody has: a system, its variables, and how images and texts become its inputs.

  model = vlx.load("runs/clip")                    # a run, or any public checkpoint that vlx reads
  model.embed_images([PIL.Image.open("a.png"), "b.jpg"])
  model.caption("photo.jpg");  model.generate_images("a red apple", num=8);  model.chat("What is this?", "photo.jpg")

Images are PIL's, arrays uint8 `[H, W, 3 or 4]` or f32 `[H, W, 3]` in [-1, 1], encoded bytes, or
paths of files. A method that the system has no capability for says what the system can do.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from jaxtyping import Float

from vlx import pretrained
from vlx.core import capabilities, partition, xla
from vlx.core import config as configs
from vlx.core.capabilities import (
  CaptionsImages,
  ChangesImages,
  Classifies,
  ComparesEmbeddings,
  EmbedsImages,
  EmbedsText,
  FilmsSampling,
  GeneratesImages,
  GeneratesText,
  MovesImages,
  Reconstructs,
  SamplesWithoutText,
  SeesImages,
  ShowsAttention,
  TokenizesImages,
)
from vlx.core.errors import UserError
from vlx.core.system import System, Variables
from vlx.data.images import AnyImage, prepared, to_uint8
from vlx.data.tokenizers import Tokenizer
from vlx.data.transforms import preprocess
from vlx.data.transforms.texts import IMAGE, expand_images
from vlx.inference import autoregressive, samplers
from vlx.inference.decoding import Search
from vlx.inference.sampling import Sampling
from vlx.losses.contrastive import cosine_similarity

ROWS = 64  # of a batch


def call(system, method: str, variables, *inputs, options: tuple[tuple[str, Any], ...] = ()):
  """`system.method(variables, *inputs, **options)`, compiled once; the result is on every
  device.
  """
  tells = samplers.tells_steps()
  return _compiled()(system, method, variables, *inputs, options=options, tells=tells)


@functools.cache
def _compiled():
  options = xla.compiler_options(jax.default_backend(), xla.INFERENCE)
  return jax.jit(
    _call, static_argnames=("system", "method", "options", "tells"), compiler_options=options
  )


def _call(
  system, method: str, variables, *inputs, options: tuple[tuple[str, Any], ...], tells: bool
):
  del tells  # it is of what tracing finds
  result = getattr(system, method)(variables, *inputs, **dict(options))
  if jax.sharding.get_abstract_mesh().empty:
    return result
  return jax.lax.with_sharding_constraint(result, P())


@dataclasses.dataclass(frozen=True)
class Model:
  """See the module.

  Attributes:
    system: what its class's capabilities say it can do.
    variables: of the system.
    tokenizer: None where it reads no texts.
    image_transform: ops that make an encoded image the system's input; "" where it sees none.
    mesh: of the devices that it runs on.
  """

  system: System
  variables: Variables
  tokenizer: Tokenizer | None
  image_transform: str
  mesh: jax.sharding.Mesh

  # Inputs.

  def prepare_images(self, images: Sequence[AnyImage]) -> Float[np.ndarray, "n height width 3"]:
    """The system's input, by `image_transform`.

    Raises:
      UserError: where a file is no image, or the model does not say how images become its input.
    """
    if not self.image_transform:
      raise UserError(
        "cannot infer image preprocessing: the model's config has no data.image_transform"
      )
    ops = preprocess.parse(self.image_transform)
    return np.stack([prepared(ops, image) for image in images])

  def encode_texts(self, texts: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray]:
    """(ids, mask) `[N, length]`, without columns that no text reaches.

    Raises:
      UserError: where there is no tokenizer, or another model's.
    """
    if self.tokenizer is None:
      raise UserError(
        "the model comes without a tokenizer: vocab.json with merges.txt, tokenizer.json or the like"
      )
    if self.tokenizer.vocab_size > self.system.vocab_size:
      raise UserError(
        f"the tokenizer has {self.tokenizer.vocab_size} tokens but the model {self.system.vocab_size}:"
        " they do not belong together"
      )
    ids, mask = self.tokenizer.encode_batch(list(texts), length)
    longest = mask.sum(axis=1).max()
    return ids[:, :longest], mask[:, :longest]

  def map(self, method: str, *inputs: Any, batch_size: int = ROWS, **options: Any) -> Any:
    """A method of the system applied to arrays (or dicts of them) with N rows, in batches; NumPy
    arrays come back.
    """
    count = len(jax.tree.leaves(inputs)[0])
    size = -(-min(batch_size, count) // self.mesh.size) * self.mesh.size
    made = []
    with jax.set_mesh(self.mesh):
      for first in range(0, count, size):
        # the last batch is filled up with its last row
        rows = np.minimum(first + np.arange(size), count - 1)
        part = jax.tree.map(
          lambda x: jax.device_put(x[rows], partition.batch_sharding(self.mesh)), inputs
        )
        found = call(
          self.system, method, self.variables, *part, options=tuple(sorted(options.items()))
        )
        made.append(jax.tree.map(np.asarray, found))
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:count], *made)

  def require(self, *wanted: type) -> None:
    capabilities.require(self.system, *wanted, what="this model")

  # Understanding.

  def embed_images(self, images: Sequence[AnyImage]) -> Float[np.ndarray, "n dim"]:
    """Not normalised."""
    self.require(EmbedsImages)
    return self.map("embed_image", self.prepare_images(images))

  def embed_texts(self, texts: Sequence[str]) -> Float[np.ndarray, "n dim"]:
    """Not normalised."""
    self.require(EmbedsText)
    return self.map("embed_text", *self.encode_texts(texts, self.system.text_length))

  def similarity(
    self, images: Sequence[AnyImage], texts: Sequence[str]
  ) -> Float[np.ndarray, "images texts"]:
    """How well each image fits each text: the cosine, or what the system ranks by."""
    return np.asarray(similarity(self.system, self.embed_images(images), self.embed_texts(texts)))

  def classify(self, image: AnyImage, top: int = 5) -> list[tuple[str, float]]:
    """The likeliest classes and their probabilities; named, where the run knows their names."""
    self.require(Classifies)
    logits = self.map("class_logits", self.prepare_images([image]))[0]
    probabilities = np.asarray(jax.nn.softmax(logits))
    name = (lambda i: self.tokenizer.decode([i])) if self.tokenizer else str
    return [
      (name(int(i)), float(probabilities[i]))
      for i in np.argsort(-probabilities, kind="stable")[:top]
    ]

  def caption(
    self, image: AnyImage, search: Search = Search(max_length=30), count: int = 5
  ) -> list[tuple[str, float]]:
    """The likeliest captions and their scores, best first."""
    self.require(CaptionsImages)
    ids, scores = self.map("caption", {"image": self.prepare_images([image])}, search=search)
    found = [
      (self.tokenizer.decode(i), float(s)) for i, s in zip(ids[0], scores[0]) if np.isfinite(s)
    ]
    return found[:count]

  def attention(self, image: AnyImage, text: str = "") -> Float[np.ndarray, "*tokens rows columns"]:
    """Where it looks in an image, at each token of the text where it is a captioner."""
    self.require(ShowsAttention)
    inputs = {"image": self.prepare_images([image])}
    if text:
      ids = np.array([self.tokenizer.tokens(text)], np.int32)
      inputs |= {"text": ids, "text_mask": np.ones(ids.shape, bool)}
    return self.map("attention_maps", inputs)[0]

  # Images out.

  def tokenize_images(self, images: Sequence[AnyImage]) -> np.ndarray:
    """Codes i32 `[N, rows, columns]`."""
    self.require(TokenizesImages)
    return self.map("image_to_tokens", self.prepare_images(images))

  def reconstruct(self, images: Sequence[AnyImage]) -> np.ndarray:
    """uint8 `[N, H, W, 3]`."""
    self.require(Reconstructs)
    return to_uint8(self.map("reconstruct", self.prepare_images(images)))

  def sampler(self, **fields: Any) -> Any:
    """The system's own sampler with these fields.

    Raises:
      UserError: for a field that it has not, with the nearest one, or a value that makes no sense.
    """
    self.require(GeneratesImages)
    return configs.build(self.system.Sampler, fields, "sampler")

  def generate_images(
    self,
    prompt: str = "",
    num: int = 8,
    *,
    seed: int = 0,
    image: AnyImage | None = None,
    mask: AnyImage | None = None,
    towards: AnyImage | None = None,
    from_prompt: str | None = None,
    **sampler: Any,
  ) -> np.ndarray:
    """Samples of a prompt, uint8 `[num, H, W, 3]`, of the seeds `seed`, `seed` + 1, …

    Args:
      prompt: where the system takes one; of a system of classes the number of one, or its name.
      num: how many.
      seed: of the first.
      image: to start from, at a strength below 1, or that keeps a part of itself.
      mask: an image of the same size, white where something new is wanted.
      towards: another image; the samples are on the way there, of one seed.
      from_prompt: what the image shows; the samples are on the way from there to `prompt`, half of it, of one seed.
      **sampler: fields of the system's `Sampler`.

    Raises:
      UserError: for an empty prompt or one too long, fields that do not fit, an image of which nothing would be left.
    """
    how = dict(seed=seed, image=image, mask=mask, towards=towards, from_prompt=from_prompt)
    return self._sampled("sample_images", prompt, num, **how, **sampler)

  def generate_film(self, prompt: str = "", num: int = 8, **how: Any) -> np.ndarray:
    """What it takes its samples for on the way, the last the samples: uint8 `[num, frames, H, W, 3]`; as
    `generate_images`.
    """
    self.require(FilmsSampling)
    return self._sampled("sample_film", prompt, num, **how)

  def _sampled(
    self,
    how,
    prompt,
    num,
    /,  # a sampler may have fields of these names
    *,
    seed=0,
    image=None,
    mask=None,
    towards=None,
    from_prompt=None,
    **fields,
  ):
    """What `sample_images` or `sample_film` gives."""
    sampler = self.sampler(**fields)
    name, changes = type(self.system).__name__, capabilities.has(self.system, ChangesImages)
    if num < 1:
      raise UserError(f"num must be at least 1, not {num}")
    inputs = self.prompt_inputs(prompt)
    if image is not None:
      if not changes:
        raise UserError(f"{name} takes no image to start from")
      if mask is None and getattr(sampler, "strength", 0) == 1:
        raise UserError(
          "nothing would be left of the image: give a strength below 1, such as 0.6, or a mask"
        )
      inputs["image"] = self.prepare_images([image])[0]
    if mask is not None:
      if not (changes and self.system.takes_mask):
        raise UserError(f"{name} takes no mask")
      if image is None:
        raise UserError("a mask needs an image")
      inputs["mask"] = self._prepare_mask(mask, image)
    seeds = (seed + np.arange(num)).astype(np.int32)
    moved = self._move_inputs(image, towards, from_prompt)
    rows = {name: np.repeat(x[None], num, axis=0) for name, x in {**inputs, **moved}.items()}
    if moved:
      seeds = np.full_like(seeds, seed)
      rows["share"] = np.linspace(0, 0.5 if towards is None else 1, num, dtype=np.float32)
    return to_uint8(self.map(how, rows, seeds, sampler=sampler))

  def _move_inputs(
    self, image: AnyImage | None, towards: AnyImage | None, from_prompt: str | None
  ) -> dict[str, np.ndarray]:
    """What says where an image is to go; empty where nobody asks."""
    if towards is None and from_prompt is None:
      return {}
    if not capabilities.has(self.system, MovesImages):
      raise UserError(f"{type(self.system).__name__} does not move images towards something")
    if image is None or (towards is not None and from_prompt is not None):
      raise UserError("an image goes towards another one, or from one prompt to another")
    if towards is not None:
      return {"towards": self.prepare_images([towards])[0]}
    return {f"from_{name}": x for name, x in self.prompt_inputs(from_prompt).items()}

  def _prepare_mask(self, mask: AnyImage, image: AnyImage) -> Float[np.ndarray, "height width 1"]:
    """1 where it is white, cut as the image is."""
    decoded = preprocess.parse("decode")  # upright, as people see them
    (h, w), (height, width) = (prepared(decoded, x).shape[:2] for x in (mask, image))
    if (h, w) != (height, width):
      raise UserError(
        f"the mask is {w}x{h}, and the image {width}x{height}: they must be of one size"
      )
    ops = preprocess.parse(self.image_transform).without_normalize()
    return (prepared(ops, mask).mean(axis=-1, keepdims=True) > 127).astype(np.float32)

  def prompt_inputs(self, prompt: str) -> dict[str, np.ndarray]:
    """A prompt as the system takes it: one example, without a batch axis."""
    wanted, name = self.system.sample_inputs(), type(self.system).__name__
    if "label" in wanted:
      return {"label": np.int32(self._class_of(prompt))}
    if "text" not in wanted:
      if wanted:
        raise UserError(f"{name} samples of {', '.join(wanted)}, which no prompt gives")
      if prompt:
        raise UserError(f"{name} samples images without a prompt; leave it out")
      return {}
    if not prompt.strip():
      if not capabilities.has(self.system, SamplesWithoutText):
        raise UserError("the prompt is empty")
      return self.system.empty_inputs()
    length = wanted["text"].shape[0]
    if len(self.tokenizer.tokens(prompt)) > length:
      raise UserError(
        f"the prompt is too long: this model reads {length} tokens, start and end among them"
      )
    ids, mask = self.tokenizer.encode(prompt, length)
    return {"text": ids, "text_mask": mask}

  def _class_of(self, prompt: str) -> int:
    """The class of this number or name."""
    count = self.system.num_classes
    if prompt.isdecimal() and int(prompt) < count:
      return int(prompt)
    names = [self.tokenizer.decode([i]) for i in range(count)] if self.tokenizer else []
    if prompt and prompt in names:
      return names.index(prompt)
    raise UserError(
      f"{type(self.system).__name__} takes the number of a class, 0 to {count - 1}"
      f"{', or its name' if names else ''}, not {prompt!r}"
    )

  # Texts out.

  @functools.cached_property
  def _decoding(self) -> tuple[GeneratesText, Variables]:
    self.require(GeneratesText)
    return self.system.for_decoding(self.variables)

  def complete(self, prompt: str, **how: Any) -> str:
    """The text that follows a prompt; `how` as of `chat`."""
    text, _ = self._continue(self.tokenizer.tokens(prompt), {}, None, **how)
    return text

  def chat(
    self, message: str, image: AnyImage | None = None, history: "Chat | None" = None, **how: Any
  ) -> tuple[str, "Chat"]:
    """(the answer to a message, the conversation so far, for the next one).

    Args:
      message: of the user.
      image: that the message is about.
      history: of earlier turns; None begins a conversation.
      **how: max_tokens, sampling, seed, and `show`, which is given the text piece by piece.

    Raises:
      UserError: where the model has no chat template, sees no images, or has no room left.
    """
    self.require(*((SeesImages,) if image is not None else (GeneratesText,)))
    if self.tokenizer is None or not self.tokenizer.has_chat:
      raise UserError(
        "this model has no chat template: continue a text instead (complete, --nochat)"
      )
    if capabilities.has(self.system, SeesImages) and IMAGE in message:
      raise UserError(f"{IMAGE} in a message would stand for an image; give the image beside it")
    history = history or Chat([], [], None)
    content = f"{IMAGE}\n{message}" if image is not None else message
    messages = [*history.messages, {"role": "user", "content": content}]
    ids = self._with_image_tokens(self.tokenizer.chat_ids(messages, answering=True))
    inputs = {"image": self.prepare_images([image])} if image is not None else {}
    held = history.ids
    # a template may say old turns in another way
    if history.cache is None or ids[: len(held)] != held:
      held, history = [], history._replace(cache=None)
    text, (answer, cache) = self._continue(ids[len(held) :], inputs, history.cache, **how)
    # The cache lacks the last token that was sampled: the next turn reads it.
    read = [*ids, *answer][: int(np.asarray(cache.lengths)[0])]
    return text, Chat([*messages, {"role": "assistant", "content": text}], read, cache)

  def _with_image_tokens(self, ids: list[int]) -> list[int]:
    if not capabilities.has(self.system, SeesImages):
      return ids
    marker = self.tokenizer.tokens_of(IMAGE)
    return expand_images(ids, marker, self.system.image_id, self.system.image_tokens)

  def _continue(
    self,
    ids: list[int],
    inputs: Mapping[str, np.ndarray],
    cache: Any,
    *,
    max_tokens: int = 256,
    sampling: Sampling = Sampling(),
    seed: int = 0,
    show: Callable[[str], None] = lambda piece: None,
    chunk: int = 8,
  ) -> tuple[str, tuple[list[int], Any]]:
    system, variables = self._decoding
    if self.tokenizer.vocab_size > system.vocab_size:
      raise UserError(
        f"the tokenizer has {self.tokenizer.vocab_size} tokens but the model {system.vocab_size}: they do not belong together"
      )
    so_far, shown = [], ""

    def on_tokens(new):
      nonlocal shown
      so_far.extend(new[0])
      # a character of which bytes are still to come
      text = self.tokenizer.decode(so_far).rstrip("\ufffd")
      show(text[len(shown) :])
      shown = text

    (found,), cache = autoregressive.generate(
      system,
      variables,
      [ids],
      max_tokens=max_tokens,
      sampling=sampling,
      seeds=seed,
      stop_ids=self.tokenizer.stop_ids,
      chunk=chunk,
      on_tokens=on_tokens,
      inputs=inputs,
      cache=cache,
      slots=system.context_length,
    )
    return self.tokenizer.decode(found), (found, cache)


@dataclasses.dataclass(frozen=True)
class Chat:
  """A conversation: its messages, the ids that the cache has read, the cache."""

  messages: list[dict[str, str]]
  ids: list[int]
  cache: Any

  def _replace(self, **changes: Any) -> "Chat":
    return dataclasses.replace(self, **changes)


def load(source: str | pathlib.Path, mesh: jax.sharding.Mesh | None = None) -> Model:
  """The model of a run's folder, a converted one, or a public checkpoint (`vlx.pretrained`).

  Args:
    source: a folder, a file, or the name of a repository on the hub.
    mesh: of the devices to run on; all that are there where None, each with all variables.

  Raises:
    UserError: where there is none.
  """
  mesh = mesh or partition.make_mesh(dict(data=-1, fsdp=1, tensor=1))
  found = pretrained.load(source, mesh=mesh)
  return Model(found.system, found.variables, found.tokenizer, found.image_transform, mesh)


def similarity(system: System, image: Any, text: Any) -> jax.Array:
  """`[images, texts]` scores of all pairs of embeddings."""
  compare = system.similarity if capabilities.has(system, ComparesEmbeddings) else cosine_similarity
  return compare(jnp.asarray(image), jnp.asarray(text))
