"""What makes two starts the same run: settings and data, not where they lie."""

import os
from typing import Any, Mapping

import ml_collections

from sidrec import config as config_lib
from sidrec import types
from sidrec.data import dataset as dataset_lib

_NAMES = ('generator.name', 'vectors.name')  # They bring sub-trees with them.
_PLACES = ('dir', 'root', 'name')  # Of `data`: where the tables are found.


def identity(config: ml_collections.ConfigDict, dataset: dataset_lib.Dataset
             ) -> dict[str, Any]:
  """Returns what must agree for a checkpoint to go on.

  Args:
    config: a whole configuration.
    dataset: read by it; its content counts, not its path.
  """
  out = config_lib.identity(config)
  for key in _PLACES:
    out['data'].pop(key, None)
  out['data']['content'] = dataset.fingerprint
  return out


def complete_identity(
    saved: Mapping[str, Any], config: ml_collections.ConfigDict,
    dataset: dataset_lib.Dataset) -> dict[str, Any]:
  """Returns an identity that an earlier version saved, in today's form.

  Keys that have come since get their defaults. Where there is no fingerprint
  of the data, their path is all that can be compared.

  Args:
    saved: what `identity` gave then, or more.
    config: of now.
    dataset: of now.
  """
  out = dict(saved)
  data = out['data'] = dict(out.get('data') or {})
  if 'content' not in data:
    same = all(data.get(key, config.data[key]) == config.data[key]
               for key in ('dir', 'name'))
    data['content'] = dataset.fingerprint if same else 'not known'
  for key in _PLACES:
    data.pop(key, None)
  defaults = config_lib.identity(_defaults(config))
  for key in _PLACES:
    defaults['data'].pop(key, None)
  return _filled(out, defaults)


def complete(saved: Any, path: str) -> ml_collections.ConfigDict:
  """Returns a configuration that a run saved, with keys that have come since.

  Args:
    saved: what config.json holds.
    path: its path, for messages.

  Raises:
    types.InputError: something in it is not of the type that it has today.
  """
  try:
    config = ml_collections.ConfigDict(saved)
    defaults = _defaults(config).to_dict()
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise types.InputError(
        f'{path}: damaged: not the configuration of a run ({error}); the '
        'command that made the run writes it again') from error
  _check_types(saved, defaults, path, 'config')
  return ml_collections.ConfigDict(_filled(saved, defaults))


def movable(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Returns what config.json holds: paths that hold from any folder."""
  out = config.to_dict()
  for key in ('dir', 'root'):
    if out['data'][key]:
      out['data'][key] = os.path.abspath(os.path.expanduser(out['data'][key]))
  return out


def _defaults(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Returns the configuration that a saved one began with, as far as known."""
  name = config.get('label') or config.get('method')
  if name not in config_lib.names():
    return config_lib.base_config()
  out = config_lib.load_experiment(name)
  chosen = {key: _get(config, key) for key in _NAMES}
  config_lib.set_keys(out, {
      key: value for key, value in chosen.items()
      if isinstance(value, str) and _get(out, key) is not None})
  return out


def _get(tree: Any, key: str) -> Any:
  for part in key.split('.'):
    tree = tree.get(part) if hasattr(tree, 'get') else None
  return tree


def _filled(saved: Mapping[str, Any], defaults: Mapping[str, Any]
            ) -> dict[str, Any]:
  """Returns `saved` with what `defaults` alone has."""
  out = dict(saved)
  for key, value in defaults.items():
    if key not in out:
      out[key] = value
    elif isinstance(value, Mapping) and isinstance(out[key], Mapping):
      out[key] = _filled(out[key], value)
  return out


def _check_types(saved: Any, defaults: Any, path: str, name: str) -> None:
  """Refuses values of another type than their defaults have."""
  if isinstance(defaults, Mapping):
    same = isinstance(saved, Mapping)
  elif isinstance(defaults, (bool, str)):
    same = isinstance(saved, type(defaults))
  elif isinstance(defaults, int) and name != 'config.tokenizer.codebook_size':
    same = isinstance(saved, int) and not isinstance(saved, bool)
  elif isinstance(defaults, float):
    same = isinstance(saved, (int, float)) and not isinstance(saved, bool)
  else:
    same = True
  if not same:
    raise types.InputError(
        f'{path}: damaged: {name} is {str(saved)[:60]!r}, where a value like '
        f'{str(defaults)[:60]!r} should be; the command that made the run '
        'writes it again')
  if isinstance(defaults, Mapping):
    for key in set(defaults) & set(saved):
      _check_types(saved[key], defaults[key], path, f'{name}.{key}')
