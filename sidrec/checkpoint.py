"""Saves and restores the train state; the only file that knows Orbax.

Orbax's `CheckpointManager` (V0) is used, for it alone is stable and does all
of: asynchronous saves, best and latest kept, atomic commit by rename.

A checkpoint `<directory>/<step>/` holds `state` (arrays), `host` (JSON: what
the caller gave, and the configuration) and `metrics`. A folder not yet renamed
to its step is a save that was cut off: ignored, and removed at the next start.
"""

import functools
import hashlib
import json
import logging
import math
import os
from typing import Any, Mapping

from etils import epath
import jax
import numpy as np
import orbax.checkpoint as ocp

from sidrec import types

TEMPORARY = '.orbax-checkpoint-tmp'

_policies = ocp.checkpoint_managers


class Checkpointer:
  """Keeps the best and the latest checkpoints of one run; a context manager."""

  def __init__(self, directory: str, *, config: Mapping[str, Any] | None = None,
               keep_latest: int = 2, best_metric: str | None = None,
               best_mode: str = 'max', among: str | None = None,
               read_only: bool = False):
    """Open a directory of checkpoints, made if absent.

    Args:
      directory: local path or bucket address.
      config: what must be equal for a checkpoint to fit (JSON values, may be
        nested); None = anything fits.
      keep_latest: number of newest checkpoints kept.
      best_metric: the checkpoint best in it is kept too.
      best_mode: 'max' or 'min'.
      among: a metric: only checkpoints of its largest value compete for the
        best; None = all do.
      read_only: only restore; touches nothing, so another process may train.

    Raises:
      types.InputError: the directory cannot be made or read.
    """
    if best_mode not in ('max', 'min'):
      raise types.InputError(f'best_mode={best_mode!r} must be max or min')
    if '://' not in directory:
      directory = os.path.abspath(directory)
    self._directory = directory
    logging.getLogger('absl').addFilter(_not_orbax_noise)
    self._config = None if config is None else _plain(config)
    self._sign = 1 if best_mode == 'max' else -1
    self._worst = -self._sign * math.inf
    quality = self._quality = functools.partial(
        _quality, best_metric, among, self._sign)
    keep = [_policies.LatestN(keep_latest)]
    if best_metric is not None:
      keep.append(_policies.BestN(
          get_metric_fn=quality, reverse=best_mode == 'min', n=1,
          keep_checkpoints_without_metrics=False))
    self._best_metric = best_metric
    options = ocp.CheckpointManagerOptions(
        preservation_policy=_policies.AnyPreservationPolicy(keep),
        # Without it, metrics are not written.
        best_fn=None if best_metric is None else quality, best_mode=best_mode,
        read_only=read_only, create=not read_only)
    try:
      if not read_only:
        _remove_unfinished(directory)
      self._manager = ocp.CheckpointManager(
          directory, options=options,
          item_handlers={'state': ocp.StandardCheckpointHandler(),
                         'host': ocp.JsonCheckpointHandler()})
    except OSError as error:
      raise types.InputError(
          f'{directory}: cannot hold checkpoints ({_one_line(error)}): choose '
          'another --workdir') from error

  def __enter__(self) -> 'Checkpointer':
    return self

  def __exit__(self, kind, value, traceback) -> None:
    del value, traceback
    if kind is None:
      self.close()
    else:
      self._abandon()

  def save(self, step: int, state: types.PyTree, host: Mapping[str, Any],
           metrics: Mapping[str, float] | None = None) -> None:
    """Start to save; returns once the arrays are copied to the host.

    A step saved before is left as it is. In several processes all call this,
    with global arrays (`Parallel.to_global`) or equal host arrays.

    Args:
      step: steps done.
      state: pytree of arrays.
      host: JSON values to find again at `restore`.
      metrics: of validation, for the choice of the best.

    Raises:
      types.InputError: this or an earlier save could not be written (full
        disk, say); the last good checkpoint is intact.
    """
    if step in self.steps():
      return
    record = {'host': _plain(host), 'config': self._config,
              'fingerprint': fingerprint(self._config)}
    items = ocp.args.Composite(
        state=ocp.args.StandardSave(state), host=ocp.args.JsonSave(record))
    # Not None, which draws a warning from Orbax.
    metrics = {k: float(v) for k, v in (metrics or {}).items()}
    with self._explain(step):
      self._manager.wait_until_finished()
      self._manager.save(step, args=items, metrics=metrics, force=True)

  def steps(self) -> list[int]:
    """List the steps of all checkpoints, ascending."""
    return sorted(self._manager.all_steps())

  def latest_step(self) -> int | None:
    """Give the newest checkpoint's step, or None."""
    return max(self.steps(), default=None)

  def best_step(self) -> int | None:
    """Give the step best in `best_metric` (the earliest of equals), or None."""
    if self._best_metric is None:
      return None
    self.wait()
    value = {s: self._quality(self._manager.metrics(s)) for s in self.steps()}
    value = {s: v for s, v in value.items() if v != self._worst}
    return max(value, key=lambda s: (self._sign * value[s], -s), default=None)

  def chosen_step(self) -> int | None:
    """Give the step to serve, or None where there is no checkpoint.

    The newest one of a run that is over (its host value `finished` is true),
    else the best, else the newest.
    """
    latest = self.latest_step()
    if latest is None or self._host(latest)['host'].get('finished'):
      return latest
    best = self.best_step()
    return latest if best is None else best

  def _host(self, step):
    try:
      return self._manager.restore(
          step, args=ocp.args.Composite(host=ocp.args.JsonRestore()))['host']
    except Exception as error:
      raise types.InputError(
          f'{self._directory}/{step}: damaged checkpoint ({_one_line(error)}): '
          'remove it to go on from the one before') from error

  def restore(self, step: int, abstract_state: types.PyTree
              ) -> tuple[types.PyTree, dict[str, Any]]:
    """Read a checkpoint, bit by bit, on whatever devices there are now.

    Args:
      step: one of `steps()`.
      abstract_state: tree of arrays or `jax.ShapeDtypeStruct`s.

    Returns:
      The state as host NumPy arrays in the abstract tree's classes (place it
      with `Parallel.place`), and what was given as `host`.

    Raises:
      types.InputError: no such step, the checkpoint of another configuration,
        or one that is damaged.
    """
    self.wait()
    where = f'{self._directory}/{step}'
    if step not in self.steps():
      raise types.InputError(
          f'{where}: no such checkpoint; there are {self.steps()}')
    record = self._host(step)
    self._check_config(where, record)
    # NumPy, so that the number of devices may change between the runs.
    target = jax.tree.map(
        lambda x: np.empty(np.shape(x), x.dtype), abstract_state)
    try:
      state = self._manager.restore(step, args=ocp.args.Composite(
          state=ocp.args.StandardRestore(target)))['state']
    except Exception as error:
      raise types.InputError(
          f'{where}: damaged checkpoint, or one of another model '
          f'({_one_line(error)}): remove it or choose another --workdir'
          ) from error
    _check_shapes(where, state, target)
    return state, record['host']

  def wait(self) -> None:
    """Wait until the save under way is committed; raises as `save` does."""
    with self._explain(None):
      self._manager.wait_until_finished()
      self._manager.check_for_errors()

  def close(self) -> None:
    """Wait, then free the threads; raises as `save` does."""
    with self._explain(None):
      self._manager.wait_until_finished()
      self._manager.check_for_errors()
      self._manager.close()

  def _check_config(self, where, record):
    if self._config is None or record['config'] is None:
      return
    if record['fingerprint'] == fingerprint(self._config):
      return
    keys = _differences(record['config'], self._config)
    more = f' and {len(keys) - 5} more' if len(keys) > 5 else ''
    raise types.InputError(
        f'{where}: checkpoint of another config ({"; ".join(keys[:5])}{more}): '
        'use the same config or choose another --workdir')

  def _explain(self, step):
    return _Explain(self, step)

  def _abandon(self):
    """Close after an error elsewhere, which must not be hidden by ours."""
    try:
      self._manager.close()
    except Exception:  # pylint: disable=broad-except
      pass


class _Explain:
  """Turns a failed write into one line that names the last good checkpoint."""

  def __init__(self, owner, step):
    self._owner, self._step = owner, step

  def __enter__(self):
    return self

  def __exit__(self, kind, error, traceback):
    del kind, traceback
    # Tensorstore reports a full disk as a ValueError, Orbax as an OSError.
    if error is None or isinstance(error, types.InputError) or not isinstance(
        error, Exception):
      return
    owner = self._owner
    # pylint: disable=protected-access
    try:
      owner._manager.reload()
      good = owner.latest_step()
    except Exception:  # pylint: disable=broad-except
      good = None
    raise types.InputError(
        f'{owner._directory}: a checkpoint could not be written '
        f'({_one_line(error)}); the last good one is of step {good}: free '
        'space there and run the same command again') from error


def _quality(name, among, sign, metrics):
  """The number that the best checkpoint has the most (sign 1) or least of."""
  value = (metrics or {}).get(name)
  if value is None or math.isnan(value):
    return -sign * math.inf
  if among is None:
    return float(value)
  if among not in metrics:  # Of another version: never the best.
    return -sign * math.inf
  # One number for both: the group, and within it the value as a share.
  return sign * metrics[among] + math.atan(value) / math.pi


def _not_orbax_noise(record):
  """Drops Orbax's progress and the tracebacks of errors it raises as well."""
  if 'orbax' not in record.pathname:
    return True
  return record.levelno >= logging.WARNING and not record.exc_info


def _remove_unfinished(directory):
  """Removes saves that were cut off.

  Orbax's own clean-up overlooks a folder killed before its marker was written.
  """
  root = epath.Path(directory)
  if jax.process_index() == 0 and root.exists():
    for path in root.glob(f'*{TEMPORARY}*'):
      path.rmtree()


def fingerprint(config: Any) -> str:
  """Hash JSON values to 16 hexadecimal digits, whatever the order of keys."""
  text = json.dumps(_plain(config), sort_keys=True)
  return hashlib.sha256(text.encode('utf-8')).hexdigest()[:16]


def _plain(value):
  """The same values as JSON gives them back."""
  def convert(leaf):
    if isinstance(leaf, (np.generic, np.ndarray, jax.Array)):
      return np.asarray(leaf).tolist()
    if hasattr(leaf, 'items'):  # ConfigDict.
      return dict(leaf.items())
    raise TypeError(f'{leaf!r} of {type(leaf)} is not JSON')
  return json.loads(json.dumps(value, default=convert))


def _differences(old, new, prefix=''):
  """Lines 'key: old value, now new value' for all that differs."""
  if not (isinstance(old, dict) and isinstance(new, dict)):
    return [] if old == new else [f'{prefix}: {old!r} there, {new!r} now']
  missing = object()
  lines = []
  for key in sorted(set(old) | set(new)):
    name = f'{prefix}.{key}' if prefix else key
    before, after = old.get(key, missing), new.get(key, missing)
    if before is missing or after is missing:
      lines.append(f'{name}: only {"now" if before is missing else "there"}')
    else:
      lines += _differences(before, after, name)
  return lines


def _check_shapes(where, state, target):
  """Orbax may cut or pad an array of another shape, so it is checked here."""
  def check(path, got, expected):
    if got.shape != expected.shape or got.dtype != expected.dtype:
      raise types.InputError(
          f'{where}: state{jax.tree_util.keystr(path)} is {got.dtype}'
          f'{list(got.shape)} there and {expected.dtype}{list(expected.shape)} '
          'now: use the same config or choose another --workdir')
  jax.tree_util.tree_map_with_path(check, state, target)


def _one_line(error):
  """The first 200 characters of the message, on one line."""
  text = ' '.join(str(error).split()) or type(error).__name__
  return text if len(text) <= 200 else text[:200] + '...'
