"""The words after the colon of --config, and settings by dotted keys."""

import os
from typing import Any, Mapping, NamedTuple, Sequence

import ml_collections

from sidrec import types
from sidrec.config import values

DEFAULT_ROOT = '~/sidrec_data'  # Of data sets, where $SIDREC_DATA is not set.
_PER_LEVEL = 'tokenizer.codebook_size'  # One number, or one a level.


class Words(NamedTuple):
  """What stands after the colon: declared words, the data set, key=value."""
  names: tuple[str, ...]
  data: str | None
  keys: Mapping[str, str]


def data_root(given: str = '') -> str:
  """Returns the folder that names of data sets are looked up in.

  Args:
    given: `config.data.root`; '': $SIDREC_DATA, else ~/sidrec_data.
  """
  return os.path.expanduser(
      given or os.environ.get('SIDREC_DATA') or DEFAULT_ROOT)


def data_sets(root: str) -> list[str]:
  """Returns the names that `data.name` may have, planted first."""
  names = sorted(os.listdir(root)) if os.path.isdir(root) else []
  return [values.PLANTED, *(name for name in names if any(
      os.path.isfile(os.path.join(root, name, f'events.{kind}'))
      for kind in ('parquet', 'csv')))]


def read_words(arg: str | None, declared: Sequence[str]) -> Words:
  """Reads the words after the colon of `--config=FILE:word,word,key=value`.

  Args:
    arg: the words, or None.
    declared: words that the experiment knows.

  Raises:
    types.InputError: a word that is neither declared nor a data set, or two
      data sets.
  """
  words = [word.strip() for word in (arg or '').split(',') if word.strip()]
  keys = dict(word.split('=', 1) for word in words if '=' in word)
  root = data_root(keys.get('data.root', ''))
  names, data = [], []
  for word in (word for word in words if '=' not in word):
    if word in declared:
      names.append(word)
    elif word == values.PLANTED or os.path.isdir(os.path.join(root, word)):
      data.append(word)
    else:
      raise types.InputError(
          f'--config: {word!r} is neither a word of this experiment '
          f'({", ".join(sorted(declared))}) nor a data set '
          f'({", ".join(data_sets(root))}; names are looked up in {root})')
  if len(data) > 1:
    raise types.InputError(
        f'--config names {len(data)} data sets ({", ".join(data)}): name one')
  return Words(tuple(names), data[0] if data else None, keys)


def apply(
    config: ml_collections.ConfigDict, arg: str | None,
    **words: Mapping[str, Any]) -> ml_collections.ConfigDict:
  """Applies the words after the colon to an experiment's config.

  Args:
    config: to change in place.
    arg: the words after the colon: first the declared ones in their order,
      `runlocal` last of them, then `key=value`.
    **words: what each declared word sets: dotted keys, or whole sub-trees.

  Returns:
    The same config.

  Raises:
    types.InputError: on an unknown word, a key that does not exist or a value
      of another type.
  """
  found = read_words(arg, tuple(words))
  if found.data is not None:
    config.data.name = found.data
  for name in sorted(found.names, key=lambda name: name == 'runlocal'):
    set_keys(config, words[name])
  set_keys(config, found.keys)
  return config


def set_keys(
    config: ml_collections.ConfigDict, settings: Mapping[str, Any]) -> None:
  """Sets dotted keys, those first that bring sub-trees (`values.CHOICES`).

  Args:
    config: to change in place.
    settings: key -> value, see `set_key`.
  """
  for key in sorted(settings, key=lambda key: key not in values.CHOICES):
    set_key(config, key, settings[key])


def set_key(config: ml_collections.ConfigDict, key: str, value: Any) -> None:
  """Sets a dotted key, reading a string as the type that is there.

  Args:
    config: to change in place.
    key: for instance 'train.num_steps'. Another `generator.name` or
      `vectors.name` takes the place of all that belongs to it.
    value: of the key's type, or its text; `/` parts the values of a tuple.
      `tokenizer.codebook_size` may be one number, or one a level.

  Raises:
    types.InputError: unknown key, or text that does not read as the type.
  """
  node = config
  *path, leaf = key.split('.')
  for part in path:
    if part not in node or not isinstance(
        node[part], ml_collections.ConfigDict):
      raise types.InputError(f'config.{key}: no such key')
    node = node[part]
  if leaf not in node:
    raise types.InputError(f'config.{key}: no such key')
  old = node[leaf]
  if value != old and value in values.CHOICES.get(key, ()):
    for group, tree in values.CHOICES[key][value]().items():
      config[group] = tree
    return
  try:
    if key == _PER_LEVEL:
      with node.ignore_type():
        node[leaf] = _sizes(value)
      return
    if isinstance(value, str) and not isinstance(old, str):
      if isinstance(old, bool):
        value = {'true': True, 'false': False}[value.lower()]
      elif isinstance(old, tuple):
        kind = type(old[0]) if old else str
        value = tuple(kind(x) for x in value.split('/') if x)
      else:
        value = type(old)(value)
    node[leaf] = value
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise types.InputError(
        f'config.{key}={value}: expected {type(old).__name__}') from error


def _sizes(value: Any) -> int | tuple[int, ...]:
  """Reads one number, or one a level, of which text is parted by `/`."""
  if isinstance(value, str):
    parts = tuple(int(x) for x in value.split('/'))
    return parts if len(parts) > 1 else parts[0]
  if not isinstance(value, int) and not (
      isinstance(value, (tuple, list)) and all(
          isinstance(x, int) for x in value)):
    raise TypeError
  return value if isinstance(value, int) else tuple(value)
