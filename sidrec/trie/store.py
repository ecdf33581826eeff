"""Keeps a trie in a file."""

import zipfile
import zlib

import numpy as np

from sidrec import disk
from sidrec import types

_FORMAT = 'sidrec-trie-1'


def save(path: str, t: types.Trie) -> None:
  """Writes a trie as an uncompressed .npz file, whole or not at all.

  Args:
    path: of the file.
    t: a trie with concrete arrays; a restriction is kept too.

  Raises:
    types.InputError: it cannot be written.
  """
  arrays = {'format': np.array(_FORMAT), 'items': np.asarray(t.items)}
  for level, (first, code) in enumerate(zip(t.first_child, t.code)):
    arrays[f'first_child_{level}'] = np.asarray(first)
    arrays[f'code_{level}'] = np.asarray(code)
    if t.allowed is not None:
      arrays[f'allowed_{level}'] = np.asarray(t.allowed[level])
  try:
    with disk.whole(path) as file:
      np.savez(file, **arrays)
  except OSError as error:
    raise types.InputError(
        f'{path}: cannot be written ({disk.reason(error)}): make room there'
        ) from error


def load(path: str) -> types.Trie:
  """Reads what `save` wrote.

  Args:
    path: of the file.

  Raises:
    types.InputError: no such file, damaged, or not a trie.
  """
  try:
    with np.load(path, allow_pickle=False) as file:
      arrays = {name: file[name] for name in file.files}
  # What is no longer a zip file, or an array in it.
  except (OSError, ValueError, EOFError, KeyError, NotImplementedError,
          SyntaxError, zipfile.BadZipFile, zlib.error) as error:
    raise types.InputError(
        f'{path}: cannot read a trie: {disk.reason(error)}') from error
  if str(arrays.pop('format', '')) != _FORMAT:
    raise types.InputError(f'{path}: not a trie that trie.save wrote')
  levels = sum(name.startswith('code_') for name in arrays)
  pick = lambda name: tuple(arrays[f'{name}_{i}'] for i in range(levels))
  try:
    return types.Trie(
        first_child=pick('first_child'), code=pick('code'),
        items=arrays['items'],
        allowed=pick('allowed') if 'allowed_0' in arrays else None)
  except KeyError as error:
    raise types.InputError(
        f'{path}: not a whole trie: {error.args[0]} is missing') from error
