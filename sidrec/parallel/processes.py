"""Host values from process to process, bit by bit and of any size.

JAX's collectives cut 64 bits to 32 and count in 32: so bytes travel, in blocks.
The structure of a tree goes ahead, as JSON; arrays follow by themselves.
"""

import json
from typing import Any, Iterator, Mapping, Sequence

import jax
from jax.experimental import multihost_utils
import numpy as np

from sidrec import types
from sidrec.parallel import encoding

_BLOCK = 1 << 26  # Most bytes that one collective carries.


def broadcast(tree: Any, named: Sequence[type] = ()) -> Any:
  """Gives process 0's tree to all; what the others pass is ignored.

  Args:
    tree: what `encoding.pack` takes.
    named: the NamedTuples that may be in it, the same in all processes.
  """
  is_main = jax.process_index() == 0
  header, arrays = encoding.pack(tree, named) if is_main else (b'', [])
  header = bytes(_send(header))
  arrived = []
  for i, (dtype, shape) in enumerate(encoding.specs(header)):
    data = _send(_bytes(arrays[i]) if is_main else b'')
    arrived.append(np.frombuffer(data, dtype).reshape(shape))
  return encoding.unpack(header, arrived, named)


def allgather(rows: types.PyTree) -> types.PyTree:
  """Concatenates the rows of all processes, in their order.

  Args:
    rows: host arrays [B_process, ...] of one structure in all processes; the
      number of rows may differ, the dtype and the rest of the shape must not.
  """
  leaves, structure = jax.tree.flatten(rows)
  header, leaves = encoding.pack(leaves)
  specs = [encoding.specs(x) for x in _gather(header)]
  joined = []
  for i, leaf in enumerate(leaves):
    joined.append(np.concatenate([
        np.frombuffer(part, spec[i][0]).reshape(spec[i][1])
        for part, spec in zip(_gather(_bytes(leaf)), specs)]))
  return jax.tree.unflatten(structure, joined)


def agree(settings: Mapping[str, Any]) -> None:
  """Checks that all processes have the same settings. A collective.

  Args:
    settings: what has a representation, by name; mappings in it may be nested.

  Raises:
    types.InputError: a setting differs; in all processes.
  """
  if jax.process_count() == 1:
    return
  mine = json.dumps(dict(_flat(settings, ''))).encode()
  first, *rest = map(json.loads, _gather(mine))
  for i, other in enumerate(rest, 1):
    for name in sorted({*first, *other}):
      values = [x.get(name, 'not there') for x in (first, other)]
      if values[0] != values[1]:
        raise types.InputError(
            f'{name} is {values[0]} in process 0 and {values[1]} in process '
            f'{i}: start all processes with the same arguments')


def _flat(settings: Any, name: str) -> Iterator[tuple[str, str]]:
  """Yields (dotted name, representation) of each setting."""
  if not isinstance(settings, Mapping):
    yield name, repr(settings)
    return
  for key, value in settings.items():
    yield from _flat(value, f'{name}.{key}' if name else str(key))


def _bytes(array: np.ndarray) -> np.ndarray:
  """Returns an array's bytes [n] uint8."""
  return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _blocks(size: int) -> list[tuple[int, int, int]]:
  """Returns (start, stop, places to send) of the blocks of `size` bytes.

  Places are powers of two, for every new number compiles a new collective.
  """
  return [(start, min(start + _BLOCK, size),
           min(1 << (min(size - start, _BLOCK) - 1).bit_length(), _BLOCK))
          for start in range(0, size, _BLOCK)]


def _words(size: int) -> np.ndarray:
  """Writes a size as two numbers of 32 bits."""
  return np.array(divmod(size, _BLOCK), np.int32)


def _size(words: Any) -> int:
  """Reads `_words`."""
  high, low = np.asarray(words).tolist()
  return high * _BLOCK + low


def _send(data: bytes | np.ndarray) -> bytearray:
  """Gives process 0's bytes to all."""
  data = np.frombuffer(data, np.uint8)
  size = _size(multihost_utils.broadcast_one_to_all(_words(data.size)))
  out = bytearray()
  for start, stop, places in _blocks(size):
    padded = np.zeros(places, np.uint8)
    part = data[start:stop]
    padded[:part.size] = part  # Other processes have none.
    got = np.asarray(multihost_utils.broadcast_one_to_all(padded))
    out += got[:stop - start].tobytes()
  return out


def _gather(data: bytes | np.ndarray) -> list[bytearray]:
  """Gives all processes the bytes of each."""
  data = np.frombuffer(data, np.uint8)
  sizes = [_size(x) for x in np.reshape(
      multihost_utils.process_allgather(_words(data.size)), (-1, 2))]
  out = [bytearray() for _ in sizes]
  for start, stop, places in _blocks(max(sizes)):
    padded = np.zeros(places, np.uint8)
    part = data[start:stop]
    padded[:part.size] = part
    every = np.reshape(
        multihost_utils.process_allgather(padded), (len(sizes), -1))
    for own, row, size in zip(out, every, sizes):
      own += row[:max(min(size, stop) - start, 0)].tobytes()
  return out
