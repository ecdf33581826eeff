"""The checkpoints of a run; the only file that knows Orbax.

Orbax's `CheckpointManager` (V0): it alone is stable and does asynchronous
saves, keeps best and latest, and commits by a rename.

A checkpoint `<directory>/<step>/` holds `state` (arrays), `host` (JSON: what
the caller gave, the configuration, and a hash of each array and of itself) and
`metrics`. A folder not yet renamed to its step is a save that was cut off:
ignored, and removed at the next start.
"""

import functools
import logging
import math
import os
from typing import Any, Callable, Mapping

import jax
import numpy as np
import orbax.checkpoint as ocp

from sidrec import disk
from sidrec import types
from sidrec.checkpoint import choice
from sidrec.checkpoint import digest
from sidrec.checkpoint import folder
from sidrec.checkpoint import noise

# What `host` holds; older ones end before the hashes.
_OLDER = {'host', 'config', 'fingerprint'}
_RECORD = _OLDER | {'metrics', 'leaves', 'crc32'}

_policies = ocp.checkpoint_managers


class Checkpointer:
  """Keeps the best and the latest checkpoints of one run; a context manager."""

  def __init__(self, directory: str, *, config: Mapping[str, Any] | None = None,
               keep_latest: int = 2, best_metric: str | None = None,
               best_mode: str = 'max', among: str | None = None,
               read_only: bool = False,
               complete: Callable[[dict[str, Any]], dict[str, Any]] | None
               = None):
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
      complete: what makes the configuration of an earlier version comparable.

    Raises:
      types.InputError: the directory cannot be made or read.
    """
    if best_mode not in ('max', 'min'):
      raise types.InputError(f'best_mode={best_mode!r} must be max or min')
    if '://' not in directory:
      directory = os.path.abspath(directory)
    self._directory = directory
    noise.drop()
    self._config = None if config is None else digest.plain(config)
    self._complete = complete or (lambda x: x)
    self._saving, self._is_open = None, False  # The last save, in the making.
    self._sign = 1 if best_mode == 'max' else -1
    self._worst = -self._sign * math.inf
    quality = self._quality = functools.partial(
        choice.quality, best_metric, among, self._sign)
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
    self._manager = _open(directory, options)

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
    # None would draw a warning from Orbax.
    metrics = {k: float(v) for k, v in (metrics or {}).items()}
    record = {'host': digest.plain(host), 'config': self._config,
              'fingerprint': digest.fingerprint(self._config),
              'metrics': metrics}
    if jax.process_index() == 0:  # Which alone writes it.
      record['leaves'] = digest.of_tree(state)
      record['crc32'] = digest.of_record(record)
    items = ocp.args.Composite(
        state=ocp.args.StandardSave(state), host=ocp.args.JsonSave(record))
    with self._explain():
      self._manager.wait_until_finished()
      self._saving, self._is_open = step, True
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
    value = {s: self._quality(self._metrics(s)) for s in self.steps()}
    value = {s: v for s, v in value.items() if v != self._worst}
    return max(value, key=lambda s: (self._sign * value[s], -s), default=None)

  def chosen_step(self, abstract_state: types.PyTree | None = None
                  ) -> int | None:
    """Give the step to serve, or None where there is no checkpoint.

    The newest one of a run that is over (its host value `finished` is true),
    else the best, else the newest.

    Args:
      abstract_state: as of `restore`; only to find out, should the newest be
        damaged, which one before it is whole.

    Raises:
      types.InputError: the newest one, or metrics of one, cannot be read.
    """
    latest = self.latest_step()
    if latest is None:
      return None
    if self._record(latest, abstract_state)['host'].get('finished'):
      return latest
    best = self.best_step()
    return latest if best is None else best

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
      types.InputError: no such step, the checkpoint of another configuration
        or model, one that is damaged (the message names a whole one before
        it), or one that cannot be read for another reason.
    """
    self.wait()
    where = self._where(step)
    if step not in self.steps():
      raise types.InputError(
          f'{where}: no such checkpoint; there are {self.steps()}')
    record = self._record(step, abstract_state)
    self._check_config(where, record)
    try:
      return self._read(step, record, abstract_state), record['host']
    except types.InputError:
      raise
    except Exception as error:  # pylint: disable=broad-except
      raise self._unreadable(step, error, abstract_state) from error

  def _where(self, step):
    return f'{self._directory}/{step}'

  def _metrics(self, step):
    """Of validation, as they were written."""
    try:
      found = self._manager.metrics(step)
      wrote = self._read_record(step).get('metrics', found)
      if digest.fingerprint(wrote or {}) != digest.fingerprint(found or {}):
        raise _Damaged('metrics are not those that were written')
      return found
    except Exception as error:  # pylint: disable=broad-except
      raise self._unreadable(step, error, None) from error

  def _record(self, step, abstract_state):
    try:
      return self._read_record(step)
    except Exception as error:  # pylint: disable=broad-except
      raise self._unreadable(step, error, abstract_state) from error

  def _read_record(self, step):
    """What `host` holds, as it was written."""
    record = self._manager.restore(
        step, args=ocp.args.Composite(host=ocp.args.JsonRestore()))['host']
    keys = set(record) if isinstance(record, dict) else set()
    if keys == _OLDER:
      logging.getLogger('absl').warning(
          '%s: of an earlier version, without hashes to compare with',
          self._where(step))
    elif keys != _RECORD:
      raise _Damaged('what is in host/metadata is not what was written')
    elif record['crc32'] != digest.of_record(record):
      raise _Damaged('host/metadata has another hash than when it was written')
    return record

  def _read(self, step, record, abstract_state):
    """The arrays, compared with their hashes."""
    there, where = record.get('leaves'), self._where(step)
    same = 'use the same config or choose another --workdir'
    # NumPy, so that the number of devices may change between the runs.
    target = jax.tree.map(
        lambda x: np.empty(np.shape(x), x.dtype), abstract_state)
    wanted = digest.of_tree(target, with_crc=False)
    other = None if there is None else digest.other_leaf(there, wanted)
    if other:
      raise types.InputError(
          f'{where}: checkpoint of another model ({other}): {same}')
    try:
      state = self._manager.restore(step, args=ocp.args.Composite(
          state=ocp.args.StandardRestore(target)))['state']
    except Exception as error:  # pylint: disable=broad-except
      if there is None and disk.cause(error) is None:
        raise types.InputError(
            f'{where}: cannot be decoded, or is of another model '
            f'({disk.one_line(error)}): {same}') from error
      raise
    here = digest.of_tree(state)
    # Orbax may cut or pad an array of another shape.
    other = digest.other_leaf(here, wanted)
    if other:
      raise types.InputError(f'{where}: {other}: {same}')
    changed = None if there is None else digest.changed_leaf(there, here)
    if changed:
      raise _Damaged(f'{changed} has another hash than when it was written')
    return state

  def _unreadable(self, step, error, abstract_state):
    """What a failed read is called: damaged only where nothing else is."""
    cause, where = disk.cause(error), self._where(step)
    if isinstance(error, _Damaged):
      what = f'damaged checkpoint: {error}'
    elif cause is None:
      what = f'damaged checkpoint: cannot be decoded ({disk.one_line(error)})'
    elif cause == disk.MISSING:
      what = f'not a whole checkpoint ({disk.one_line(error)})'
    else:
      return types.InputError(
          f'{where}: cannot be read ({cause}): nothing says that it is not '
          'whole; mend that and run the same command again')
    return types.InputError(
        f'{where}: {what}; {self._way_on(step, abstract_state)}')

  def _way_on(self, step, abstract_state):
    """Says which whole checkpoint there is before one that is not."""
    steps = self.steps()
    for before in reversed([x for x in steps if x < step]):
      try:
        record = self._read_record(before)
        if abstract_state is not None:
          self._read(before, record, abstract_state)
      except Exception:  # pylint: disable=broad-except
        continue
      moved = ', '.join(str(x) for x in steps if x >= step)
      return (f'{before} is whole: to go on from there move {moved} out of '
              f'{self._directory} and run the training command again')
    return 'none before it is whole: begin again in another --workdir'

  def check(self) -> None:
    """Raises as `save` does if the last one has failed; does not wait."""
    if self._is_open and not self._manager.is_saving_in_progress():
      self.wait()

  def wait(self) -> None:
    """Wait until the save under way is committed; raises as `save` does."""
    with self._explain():
      self._is_open = False
      self._manager.wait_until_finished()
      self._manager.check_for_errors()

  def close(self) -> None:
    """Wait, then free the threads; raises as `save` does."""
    self.wait()
    with self._explain():
      self._manager.close()

  def _check_config(self, where, record):
    if self._config is None or record['config'] is None:
      return
    if record['fingerprint'] == digest.fingerprint(self._config):
      return
    keys = digest.differences(self._complete(record['config']), self._config)
    if not keys:
      return
    more = f' and {len(keys) - 5} more' if len(keys) > 5 else ''
    raise types.InputError(
        f'{where}: checkpoint of another config ({"; ".join(keys[:5])}{more}): '
        'use the same config and data, or choose another --workdir')

  def _explain(self):
    return _Explain(self)

  def _abandon(self):
    """Close after an error elsewhere, which must not be hidden by ours."""
    try:
      self._manager.close()
    except Exception:  # pylint: disable=broad-except
      pass


def _open(directory, options):
  """Orbax's manager, of a directory without saves that were cut off."""
  try:
    if not options.read_only:
      folder.remove_unfinished(directory)
    return ocp.CheckpointManager(
        directory, options=options,
        item_handlers={'state': ocp.StandardCheckpointHandler(),
                       'host': ocp.JsonCheckpointHandler()})
  except OSError as error:
    raise types.InputError(
        f'{directory}: cannot hold checkpoints ({disk.reason(error)}): choose '
        'another --workdir') from error
  except Exception as error:  # pylint: disable=broad-except
    raise types.InputError(
        f'{folder.undecoded(directory)}: damaged checkpoint: cannot be decoded '
        f'({disk.one_line(error)}): move it and all later ones out of '
        f'{directory} and run the training command again, to go on from the '
        'one before it') from error


class _Damaged(Exception):
  """What was read is not what was written."""


class _Explain:
  """Turns a failed write into one line that names the last good checkpoint."""

  def __init__(self, owner):
    self._owner = owner

  def __enter__(self):
    return self

  def __exit__(self, kind, error, traceback):
    del kind, traceback
    # Tensorstore reports a full disk as a ValueError, Orbax as an OSError.
    if error is None or isinstance(error, types.InputError) or not isinstance(
        error, Exception):
      return
    owner = self._owner  # pylint: disable=protected-access
    try:
      owner._manager.reload()
      good = owner.latest_step()
    except Exception:  # pylint: disable=broad-except
      good = None
    what = 'make room there and ' * (disk.cause(error) != disk.LOST_PEER)
    raise types.InputError(
        f'{owner._where(owner._saving)}: a checkpoint could not be written '
        f'({disk.reason(error)}); '
        + ('there is none before it' if good is None else
           f'the last good one is of step {good}')
        + f': {what}run the same command again') from error
