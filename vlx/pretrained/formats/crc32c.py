"""CRC-32C (Castagnoli; RFC 3720, appendix B.4) of large arrays, by numpy.

A CRC without its final and initial inversion is linear: of words w_0 … w_{n-1} it is the sum (XOR) of
A^{n-i} w_i, where A moves a state past four zero bytes. So the words are laid in rows of `_LANES`, a
whole row is moved at a time (Horner's rule with A^_LANES), and the last row is folded in halves.
"""

import functools

import numpy as np

_POLYNOMIAL = np.uint32(0x82F63B78)  # bit-reversed
_LANES = 1 << 14  # rows that stay in the cache


def crc32c(data: np.ndarray) -> int:
  """Of the bytes of an array, in the order of its memory."""
  data = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
  whole = len(data) - len(data) % 4
  state = _of_words(data[:whole]) if whole else np.uint32(0xFFFFFFFF)
  for byte in data[whole:]:
    state = _past_zeros(state ^ np.uint32(byte), 1)
  return int(~state)


def _of_words(data: np.ndarray) -> np.uint32:
  """The state after the bytes of whole words."""
  lanes = min(_LANES, 1 << (len(data) // 4).bit_length() - 1)
  # To a linear state zeros in front are nothing, and the initial inversion is one of the first word.
  first = len(data) % (4 * lanes) or 4 * lanes
  row = np.zeros(4 * lanes, np.uint8)
  row[-first:] = data[:first]
  row[4 * lanes - first :][:4] ^= 0xFF
  state = row.view("<u4").astype(np.uint32)
  for words in data[first:].reshape(-1, 4 * lanes):
    state = _moved(state, lanes) ^ words.view("<u4")
  while lanes > 1:
    lanes //= 2
    state = _moved(state[:lanes], lanes) ^ state[lanes:]
  return _moved(state, 1)[0]


def _moved(state: np.ndarray, words: int) -> np.ndarray:
  """States `[n]` past so many zero words, a power of two of them."""
  low, high = _tables(words)
  return low[state & 0xFFFF] ^ high[state >> 16]


@functools.lru_cache
def _tables(words: int) -> tuple[np.ndarray, np.ndarray]:
  """What a move makes of each lower, and of each upper half of a state."""
  if words == 1:
    bits = _past_zeros(np.uint32(1) << np.arange(32, dtype=np.uint32), 4)
  else:
    bits = _moved(_moved(np.uint32(1) << np.arange(32, dtype=np.uint32), words // 2), words // 2)
  return _sums(bits[:16]), _sums(bits[16:])


def _sums(bits: np.ndarray) -> np.ndarray:
  """The image of every number of 16 bits, by those of single bits."""
  table = np.zeros(1, np.uint32)
  for image in bits:
    table = np.concatenate([table, table ^ image])
  return table


def _past_zeros(state, count: int):
  """States past so many zero bytes, bit by bit."""
  for _ in range(8 * count):
    state = (state >> np.uint32(1)) ^ (_POLYNOMIAL * (state & np.uint32(1)))
  return state
