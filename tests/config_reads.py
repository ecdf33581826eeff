"""A configuration that notes which of its leaves are read."""

import sys
from typing import Any

import ml_collections
from ml_collections.config_dict import config_dict

# Files between a config and who reads it.
_THROUGH = (__file__, config_dict.__file__)
# Sub-trees that are one value: metrics and their weights.
_WHOLE = ('eval.monitor',)


class Log:
  """What was read. leaves: dotted keys. missing: those that were not there."""

  def __init__(self):
    self.leaves: set[str] = set()
    self.missing: set[str] = set()


class Recorder(ml_collections.ConfigDict):
  """A ConfigDict that writes into a log; copies write into the same one.

  A function whose name begins with `check` looks at a value to refuse it: that
  does not count as reading.
  """

  def __getitem__(self, key: Any) -> Any:
    log, name = self.__dict__.get('_log'), self.__dict__.get('_name')
    if log is None:
      return super().__getitem__(key)
    name = f'{name}.{key}' if name else str(key)
    try:
      value = super().__getitem__(key)
    except KeyError:
      if not str(key).startswith('_'):
        log.missing.add(name)
      raise
    if (not isinstance(value, ml_collections.ConfigDict)
        or name in _WHOLE) and not _checking():
      log.leaves.add(name)
    return value

  def to_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Is how a config is written down or compared: no reading."""
    return _plain(self).to_dict(*args, **kwargs)

  def copy_and_resolve_references(self, visit_map: Any = None) -> 'Recorder':
    """Returns a copy with the same log."""
    del visit_map
    return _label(_plain(self), self.__dict__.get('_log'),
                  self.__dict__.get('_name', ''))


def record(config: ml_collections.ConfigDict) -> tuple[Recorder, Log]:
  """Returns a copy of a config that writes what is read of it into a log."""
  log = Log()
  return _label(config, log, ''), log


def leaves(config: ml_collections.ConfigDict, name: str = '') -> set[str]:
  """Returns the dotted keys of all leaves, without a note of it."""
  out = set()
  for key, value in _values(config):
    own = f'{name}.{key}' if name else key
    if own not in _WHOLE and isinstance(value, ml_collections.ConfigDict):
      out |= leaves(value, own)
    else:
      out.add(own)
  return out


def _values(config):
  """Yields the fields of a config, without a note of it."""
  for key, value in config.items(preserve_field_references=True):
    yield key, value.get() if isinstance(
        value, ml_collections.FieldReference) else value


def _plain(config):
  out = ml_collections.ConfigDict()
  for key, value in _values(config):
    out[key] = _plain(value) if isinstance(
        value, ml_collections.ConfigDict) else value
  return out


def _label(config, log, name):
  out = Recorder()
  for key, value in _values(config):
    out[key] = _label(
        value, log, f'{name}.{key}' if name else key) if isinstance(
            value, ml_collections.ConfigDict) else value
  object.__setattr__(out, '_log', log)
  object.__setattr__(out, '_name', name)
  return out


def _checking() -> bool:
  """Whether the function that reads is one that only checks."""
  frame = sys._getframe(1)  # pylint: disable=protected-access
  while frame is not None:
    code = frame.f_code
    if code.co_filename not in _THROUGH and not code.co_name.startswith('<'):
      return code.co_name.lstrip('_').startswith('check')
    frame = frame.f_back
  return False
