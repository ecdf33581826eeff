"""Chooses how one per-device step runs on all devices of all processes.

A step is written once, for the rows of one device, with collectives over the
axis name `types.AXIS`. This package alone knows of pmap, shard_map, vmap and
of `jax.distributed` (`startup`).

  pmap       the default; state and catalog enter and leave with no device
             axis and live on a mesh of the *local* devices.
  shard_map  the same body under `jit`, on global arrays.
  vmap       all shards on one device of one process: tests and notebooks.
"""

import dataclasses
from typing import Any, Callable, Sequence

import jax
from jax.experimental import multihost_utils
import numpy as np

from sidrec import types
from sidrec.parallel import encoding
from sidrec.parallel import processes

WRAPPERS = ('pmap', 'shard_map', 'vmap')

# (state, const, batch) -> (state, metrics), for the rows of one device.
StepFn = Callable[[types.PyTree, types.PyTree, types.PyTree],
                  tuple[types.PyTree, types.PyTree]]
# (state, const, batch) -> outputs whose leaves lead with the rows of `batch`.
RowsFn = Callable[[types.PyTree, types.PyTree, types.PyTree], types.PyTree]


def make(wrapper: str = 'pmap',
         devices: Sequence[jax.Device] | None = None,
         num_shards: int | None = None) -> 'Parallel':
  """Make the `Parallel` of a wrapper.

  Args:
    wrapper: 'pmap', 'shard_map' or 'vmap'.
    devices: of all processes, in order; None = all there are.
    num_shards: of 'vmap' only; None = the number of devices.

  Raises:
    types.InputError: unknown wrapper, `vmap` in several processes, or
      `num_shards` with another wrapper than `vmap`.
  """
  if wrapper not in WRAPPERS:
    raise types.InputError(
        f'parallel.wrapper={wrapper!r} is unknown: choose one of '
        f'{", ".join(WRAPPERS)}')
  if wrapper == 'vmap' and jax.process_count() > 1:
    raise types.InputError(
        'parallel.wrapper=vmap runs in one process only: use pmap or shard_map')
  if num_shards is not None and (wrapper != 'vmap' or num_shards < 1):
    raise types.InputError(
        f'num_shards={num_shards} needs parallel.wrapper=vmap and at least 1')
  devices = tuple(jax.devices() if devices is None else devices)
  if not any(d.process_index == jax.process_index() for d in devices):
    raise types.InputError(
        f'process {jax.process_index()} has none of the chosen devices')
  return Parallel(wrapper=wrapper, devices=devices,
                  num_shards=num_shards or len(devices))


@dataclasses.dataclass(frozen=True)
class Parallel:
  """Runs per-device functions; see `make`.

  wrapper: one of `WRAPPERS`.
  devices: of all processes.
  num_shards: parts of the global batch; the number of devices but for `vmap`.
  """
  wrapper: str
  devices: tuple[jax.Device, ...]
  num_shards: int
  axis_name: str = types.AXIS

  @property
  def num_devices(self) -> int:
    """Shards of the global batch, over all processes."""
    return self.num_shards

  @property
  def num_local_devices(self) -> int:
    """Shards of this process's rows."""
    if self.wrapper == 'vmap':
      return self.num_shards
    return len(self._local_devices)

  @property
  def process_index(self) -> int:
    return jax.process_index()

  @property
  def process_count(self) -> int:
    return jax.process_count()

  @property
  def is_main(self) -> bool:
    """True in the one process that writes files and logs."""
    return self.process_index == 0

  @property
  def _local_devices(self) -> tuple[jax.Device, ...]:
    return tuple(d for d in self.devices
                 if d.process_index == jax.process_index())

  def _sharding(self, local: bool, rows: bool = False) -> Any:
    """Sharding over the local or the global devices."""
    if self.wrapper == 'vmap':
      return jax.sharding.SingleDeviceSharding(self.devices[0])
    devices = self._local_devices if local else self.devices
    mesh = jax.sharding.Mesh(np.array(devices), (self.axis_name,))
    spec = (self.axis_name,) if rows else ()
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))

  def place(self, tree: types.PyTree) -> types.PyTree:
    """Replicate a state or catalog, host or device, for the mapped steps.

    Donated state must come from here: pmap with no state axis deletes arrays
    that sit on one device only, and fails at the first step of two processes.
    """
    if self.wrapper != 'shard_map' or self.process_count == 1:
      # A copy: the step donates its state, the caller's tree stays usable.
      sharding = self._sharding(local=self.wrapper != 'shard_map')
      return jax.tree.map(
          lambda x: jax.device_put(np.asarray(x), sharding), tree)
    sharding = self._sharding(local=False)
    def replicate(leaf):
      value = np.asarray(leaf)
      return jax.make_array_from_callback(
          value.shape, sharding, lambda index: value[index])
    return jax.tree.map(replicate, tree)

  def shard(self, batch: types.PyTree) -> types.PyTree:
    """Split this process's rows over its devices.

    Args:
      batch: host arrays [B / processes, ...].

    Returns:
      [local devices, B / devices, ...] a leaf (a global array
      [devices, B / devices, ...] under shard_map).

    Raises:
      types.InputError: the rows are not divisible by the devices.
    """
    num_rows, num_local = _num_rows(batch), self.num_local_devices
    if num_rows == 0 or num_rows % num_local:
      raise types.InputError(
          f'a batch has {num_rows} rows a process, not divisible by its '
          f'{num_local} devices: make config.train.batch_size (and '
          f'retrieval_batch_size) a multiple of {self.num_devices}')
    split = lambda x: np.reshape(
        x, (num_local, num_rows // num_local) + np.shape(x)[1:])
    batch = jax.tree.map(split, batch)
    if self.wrapper != 'shard_map':
      return batch
    sharding = self._sharding(local=False, rows=True)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(
            sharding, x, (self.num_devices,) + x.shape[1:]), batch)

  def map_step(self, fn: StepFn, donate: bool = True) -> StepFn:
    """Map a step over the devices of all processes.

    Args:
      fn: (state, const, batch) -> (state, metrics), per device; what it
        returns must be equal on all devices (psum, pmean, all_gather).
      donate: the state's buffers are reused: never touch the old state again.

    Returns:
      The same signature on placed state and const and a sharded batch.
    """
    donated = (0,) if donate else ()
    everything = len(self.devices) == jax.device_count()
    if self.wrapper == 'pmap':
      return jax.pmap(
          fn, axis_name=self.axis_name, in_axes=(None, None, 0),
          out_axes=(None, None), donate_argnums=donated,
          devices=None if everything else self.devices)
    if self.wrapper == 'vmap':
      mapped = _vmap(fn, self.axis_name)
      first = lambda *args: jax.tree.map(lambda x: x[0], mapped(*args))
      return jax.jit(first, donate_argnums=donated)
    return jax.jit(self._shard_map(fn, local=False, rows_out=False),
                   donate_argnums=donated)

  def map_rows(self, fn: RowsFn) -> RowsFn:
    """Map a per-row function over the rows and devices of this process.

    No process waits for another: their numbers of calls and of rows are free.
    Rows are padded with copies of the last one to a multiple of the devices,
    and to the largest earlier call: a short rest does not compile again.

    Args:
      fn: (state, const, batch) -> outputs [rows, ...]; rows must not mix.

    Returns:
      The same signature on placed state and const and host rows [B, ...];
      gives host NumPy [B, ...].
    """
    num_local = self.num_local_devices
    if self.wrapper == 'pmap':
      mapped = jax.pmap(fn, axis_name=self.axis_name, in_axes=(None, None, 0),
                        devices=self._local_devices)
    elif self.wrapper == 'vmap':
      mapped = jax.jit(_vmap(fn, self.axis_name))
    else:
      mapped = jax.jit(self._shard_map(fn, local=True, rows_out=True))
    # By shape: the few rows of one kind are not padded to the many of another.
    most = {}

    def run(state, const, batch):
      num_rows = _num_rows(batch)
      kind = tuple(np.shape(x)[1:] for x in jax.tree.leaves(batch))
      capacity = most[kind] = max(
          most.get(kind, 0), -(-max(num_rows, 1) // num_local))
      padded = num_local * capacity
      split = lambda x: np.reshape(
          _pad(x, padded), (num_local, capacity) + np.shape(x)[1:])
      outputs = mapped(self._local_view(state), self._local_view(const),
                       jax.tree.map(split, batch))
      join = lambda x: np.reshape(x, (padded,) + x.shape[2:])[:num_rows].copy()
      return jax.tree.map(join, jax.device_get(outputs))

    return run

  def _shard_map(self, fn, local, rows_out):
    """`fn` under shard_map; the batch's first axis is the device's."""
    def body(state, const, batch):
      outputs = fn(state, const, jax.tree.map(lambda x: x[0], batch))
      return jax.tree.map(lambda x: x[None], outputs) if rows_out else outputs
    spec = jax.sharding.PartitionSpec
    # With check_vma=True, a pmean of gradients in the body comes out too
    # large by the number of devices, with no error.
    return jax.shard_map(
        body, mesh=self._sharding(local).mesh,
        in_specs=(spec(), spec(), spec(self.axis_name)),
        out_specs=spec(self.axis_name) if rows_out else spec(),
        check_vma=False)

  def _local_view(self, tree):
    """The same buffers seen as arrays of this process's devices only."""
    if self.wrapper != 'shard_map' or self.process_count == 1:
      return tree
    return _view(tree, self._sharding(local=True))

  def to_host(self, tree: types.PyTree) -> types.PyTree:
    """Copy a replicated tree to host NumPy arrays."""
    # A copy, for on CPU a view would change with the donated buffer.
    return jax.tree.map(lambda x: np.array(np.asarray(x)), tree)

  def to_global(self, tree: types.PyTree) -> types.PyTree:
    """View a placed state as arrays that Orbax saves across processes.

    Orbax refuses the host-local arrays that pmap returns in two processes.
    """
    if self.wrapper != 'pmap' or self.process_count == 1:
      return tree
    return _view(tree, self._sharding(local=False))

  def allgather_rows(self, rows: types.PyTree) -> types.PyTree:
    """Concatenate the rows of all processes, in their order.

    Args:
      rows: host arrays [B_process, ...]; the number of rows may differ, the
        dtype (64 bits too) and the rest of the shape must not.
    """
    rows = jax.tree.map(np.asarray, rows)
    return rows if self.process_count == 1 else processes.allgather(rows)

  def broadcast(self, tree: Any, named: Sequence[type] = ()) -> Any:
    """Give process 0's host value to all; what the others pass is ignored.

    Arrays arrive as NumPy, bit by bit.

    Args:
      tree: what `encoding.pack` takes: arrays and JSON values.
      named: the NamedTuples that may be in it, the same in all processes.
    """
    if self.process_count == 1:
      return tree
    return processes.broadcast(tree, named)

  def once(self, fn: Callable[[], Any], named: Sequence[type] = ()) -> Any:
    """Do host work in process 0 and give its result to all.

    An exception in process 0 is raised in every process (as an `InputError`,
    a FloatingPointError or a RuntimeError): none is left to wait.

    Args:
      fn: its result travels as in `broadcast`.
      named: as in `broadcast`.
    """
    if self.process_count == 1:
      return fn()
    kinds = {kind.__name__: kind for kind in (
        types.InputError, FloatingPointError, RuntimeError)}
    result, failed, text = None, None, ''
    if self.is_main:
      try:
        result = fn()
        encoding.pack(result, named)
      except Exception as e:  # pylint: disable=broad-except
        name = type(e).__name__
        result, failed, text = (
            None, name if name in kinds else 'RuntimeError', str(e))
    result, failed, text = self.broadcast((result, failed, text), named)
    if failed is not None:
      raise kinds[failed](text)
    return result

  def any_true(self, flag: bool) -> bool:
    """Say whether the flag is set in any process (to stop all together)."""
    if self.process_count == 1:
      return bool(flag)
    return bool(self.allgather_rows(np.array([flag], np.int32)).any())

  def barrier(self, name: str) -> None:
    """Wait until every process is here."""
    if self.process_count > 1:
      multihost_utils.sync_global_devices(name)


def _vmap(fn, axis_name):
  return jax.vmap(fn, in_axes=(None, None, 0), axis_name=axis_name)


def _view(tree, sharding):
  """Replicated arrays under another replicated sharding; nothing is copied."""
  return jax.tree.map(
      lambda x: jax.make_array_from_single_device_arrays(
          x.shape, sharding, [s.data for s in x.addressable_shards]), tree)


def _num_rows(batch):
  """The common length of all leaves."""
  sizes = {np.shape(x)[0] for x in jax.tree.leaves(batch)}
  if len(sizes) != 1:
    raise ValueError(f'leaves of a batch differ in rows: {sorted(sizes)}')
  return sizes.pop()


def _pad(array, num_rows):
  """Repeat the last row (a zero row where there is none) up to `num_rows`."""
  array = np.asarray(array)
  missing = num_rows - len(array)
  if missing == 0:
    return array
  last = array[-1:] if len(array) else np.zeros_like(
      array, shape=(1,) + array.shape[1:])
  return np.concatenate([array, np.repeat(last, missing, axis=0)])
