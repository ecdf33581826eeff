"""Batches as a pure function of (seed, number), prefetched by a thread."""

import dataclasses
import queue
import threading
from typing import Iterator, Mapping
import zlib

import numpy as np

from sidrec import types
from sidrec.data import dataset as dataset_lib
from sidrec.data import draws
from sidrec.data import packing

# Events of sequences -> what `Dataset.examples` calls them.
_KINDS = {'positives': 'positives', 'all': 'impressions'}


class Pipeline:
  """Reads the training split; every process sees its slice of each batch.

  A stream has batch numbers of its own; a batch is a pure function of the
  seed, the stream's name and the number. Made once and iterated many times:
  packed rows and the order of the epoch at hand are kept.
  """

  def __init__(
      self, dataset: dataset_lib.Dataset,
      streams: Mapping[str, types.StreamSpec], *, seed: int,
      process_index: int = 0, process_count: int = 1, prefetch: int = 2):
    """Checks the streams.

    Args:
      dataset: to read from.
      streams: name -> what it reads; the name is part of the seed.
      seed: of order and negatives.
      process_index, process_count: this process has the contiguous rows
        `process_index * B / process_count` onwards of each global batch.
      prefetch: batches kept ready by `iterate`.

    Raises:
      types.InputError: a batch that does not divide; no examples; a stream of
        impressions without negatives in a log that has none.
      ValueError: an unknown word in a `types.StreamSpec`.
    """
    self._dataset, self._streams, self._seed = dataset, dict(streams), seed
    self._process = process_index, process_count
    self._prefetch = max(prefetch, 1)
    self._events, self._order, self._packed = {}, {}, {}
    for name, stream in self._streams.items():
      _check(dataset, name, stream, process_count)
      self._events[name] = self._examples(name, stream)
      if not len(self._events[name]):
        raise types.InputError(
            f'stream {name}: {dataset.name} has no {stream.examples} in the '
            'training split')

  def _examples(self, name: str, stream: types.StreamSpec) -> np.ndarray:
    """Returns what an epoch goes through: events, items or packed rows."""
    dataset = self._dataset
    if stream.examples == 'items':
      return np.arange(dataset.spec.num_items)
    if stream.examples != 'sequences':
      return dataset.examples('train', stream.examples)
    events = dataset.examples('train', _KINDS[stream.events])
    if stream.layout == 'last':
      return events[dataset.history_size(events) > 0]
    packed = packing.pack(
        dataset.event_user[events], dataset.spec.history_length,
        stream.length, self._generator(name, 'packing', 0))
    self._packed[name] = dataclasses.replace(
        packed, place=np.where(packed.place < 0, -1, events[packed.place]))
    return np.arange(len(packed.place))

  def num_examples(self, name: str) -> int:
    """Returns the examples of one epoch of a stream."""
    return len(self._events[name])

  def batch(
      self, numbers: Mapping[str, int] | int
  ) -> dict[str, types.Batch | types.ItemBatch | types.Sequence]:
    """Returns this process's rows of batches, by stream.

    Args:
      numbers: stream -> number of its batch, for the streams that are wanted;
        or one number for all streams.
    """
    if not isinstance(numbers, Mapping):
      numbers = dict.fromkeys(self._streams, numbers)
    return {name: self._batch(name, self._streams[name], int(number))
            for name, number in numbers.items()}

  def iterate(
      self, starts: Mapping[str, int], num: int
  ) -> Iterator[dict[str, types.Batch | types.ItemBatch | types.Sequence]]:
    """Yields `num` times the next batch of each stream.

    A thread works ahead; its exceptions are raised here, and it ends with
    the iterator.

    Args:
      starts: stream -> number of its first batch.
      num: how many of each stream.
    """
    ready = queue.Queue(self._prefetch)
    stopped = threading.Event()

    def put(value) -> None:
      while not stopped.is_set():
        try:
          return ready.put(value, timeout=.1)
        except queue.Full:
          continue

    def work() -> None:
      try:
        for step in range(num):
          if stopped.is_set():
            return
          put((self.batch({name: start + step
                           for name, start in starts.items()}), None))
      except BaseException as error:  # pylint: disable=broad-except
        put((None, error))

    thread = threading.Thread(target=work, daemon=True, name='sidrec-batches')
    thread.start()
    try:
      for _ in range(num):
        batch, error = ready.get()
        if error is not None:
          raise error
        yield batch
    finally:
      stopped.set()
      thread.join()

  def _batch(
      self, name: str, stream: types.StreamSpec, number: int
  ) -> types.Batch | types.ItemBatch | types.Sequence:
    """Draws the global batch and keeps this process's rows of it."""
    size = stream.batch_size
    events = self._global_events(name, number * size, size)
    process_index, process_count = self._process
    local = size // process_count
    row = np.arange(process_index * local, (process_index + 1) * local)
    if stream.examples == 'items':
      return types.ItemBatch(
          row=row.astype(np.int32), item=events[row].astype(np.int32))
    if stream.examples == 'sequences':
      return self._sequences(name, stream, events, row)
    items = self._dataset.event_item[events][:, None]
    if stream.negatives:
      # Drawn for the global batch, so that 1 and N processes agree.
      drawn = self._generator(name, 'negatives', number).integers(
          0, self._dataset.spec.num_items - 1, (size, stream.negatives),
          dtype=np.int32)
      items = np.concatenate(
          [items, draws.skip_own(drawn, items)], axis=1)
    own, items = events[row], items[row]
    mask = np.ones(items.shape, np.float32)
    batch = self._dataset.requests_of(own, row)
    if stream.seen_negatives:
      draw = self._generator(name, 'seen', number).random(
          (size, stream.seen_negatives))
      seen, valid = _from_seen(batch, draw[row], items[:, :1])
      items = np.concatenate([items, seen], 1)
      mask = np.concatenate([mask, valid], 1)
    label = np.zeros(items.shape, np.float32)
    label[:, 0] = self._dataset.event_label[own]
    return self._dataset.with_candidates(batch, own, items, label, mask)

  def _sequences(
      self, name: str, stream: types.StreamSpec, events: np.ndarray,
      row: np.ndarray) -> types.Sequence:
    """Returns rows [b] of a global batch of packed rows or events [B]."""
    if stream.layout == 'packed':
      rows, packed = events[row], self._packed[name]
      return self._dataset.sequence(
          packed.place[rows], packed.segment[rows], packed.target[rows], row)
    # As wide as the global batch needs, so that all processes agree.
    width = self._widths(stream)[self._places(stream, events).max()]
    return self._dataset.to_predict(events[row], width, row)

  def _global_events(self, name: str, start: int, size: int) -> np.ndarray:
    """Returns rows start : start + size of the endless shuffled epochs."""
    num = len(self._events[name])
    parts, stop = [], start + size
    while start < stop:
      epoch, place = divmod(start, num)
      count = min(num - place, stop - start)
      parts.append(self._permutation(name, epoch)[place:place + count])
      start += count
    return self._events[name][np.concatenate(parts)]

  def _permutation(self, name: str, epoch: int) -> np.ndarray:
    """Returns the order of one epoch; the last one of a stream is kept."""
    kept = self._order.get(name)
    if kept is None or kept[0] != epoch:
      draw = self._generator(name, 'order', epoch)
      order = draw.permutation(len(self._events[name]))
      stream = self._streams[name]
      most = stream.user_rows
      if stream.widths:
        order = _in_batches(
            self._places(stream, self._events[name])[order], order,
            -epoch * len(order) % stream.batch_size, stream.batch_size, draw)
      elif most > 1:
        user = self._dataset.event_user[self._events[name]]
        order = _in_groups(user, order, most, draw)
      kept = self._order[name] = (epoch, order)
    return kept[1]

  def _widths(self, stream: types.StreamSpec) -> tuple[int, ...]:
    """Returns the lengths that histories of a stream are cut to."""
    return stream.widths or (self._dataset.spec.history_length,)

  def _places(self, stream: types.StreamSpec, events: np.ndarray) -> np.ndarray:
    """Returns which of the stream's widths holds each event's history."""
    widths = self._widths(stream)
    return np.minimum(np.searchsorted(
        widths, self._dataset.history_size(events)), len(widths) - 1)

  def _generator(
      self, name: str, purpose: str, number: int
  ) -> np.random.Generator:
    """Returns a generator of its own for (seed, stream, purpose, number)."""
    entropy = [self._seed, zlib.crc32(f'{name}/{purpose}'.encode()), number]
    return np.random.Generator(
        np.random.Philox(np.random.SeedSequence(entropy)))


def _check(
    dataset: dataset_lib.Dataset, name: str, stream: types.StreamSpec,
    process_count: int) -> None:
  """Raises on a stream that a data set cannot give."""
  for value, allowed in (
      (stream.examples, ('impressions', 'positives', 'items', 'sequences')),
      (stream.events, tuple(_KINDS)), (stream.layout, ('packed', 'last'))):
    if value not in allowed:
      raise ValueError(f'stream {name}: {value!r} is none of {allowed}')
  if stream.batch_size < 1 or stream.batch_size % process_count:
    raise types.InputError(
        f'config.train.batch_size: {stream.batch_size} rows of stream {name} '
        f'do not divide among {process_count} processes')
  if (stream.examples == 'impressions' and stream.negatives < 1
      and not dataset.has_negatives):
    raise types.InputError(
        f'stream {name}: every event of {dataset.name} is a positive; it '
        'needs negatives >= 1')
  if stream.negatives and dataset.spec.num_items < 2:
    raise types.InputError(
        f'stream {name}: a catalog of one item leaves no negatives')


def _from_seen(
    batch: types.Batch, draw: np.ndarray, own: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Picks items of what each row's user has seen.

  Args:
    batch: B requests; their histories where nothing else says what was seen.
    draw: [B, N] uniform in [0, 1).
    own: [B, 1] the row's positive.

  Returns:
    items [B, N] int32, mask [B, N] float32.
  """
  seen, valid = batch.history.item, batch.history.segment > 0
  if batch.seen is not None:
    seen, valid = batch.seen.item, batch.seen.mask > 0
  length = valid.sum(1, keepdims=True)
  place = seen.shape[1] - np.maximum(length, 1) + (
      draw * length).astype(np.int64)
  items = np.take_along_axis(seen, place, 1)
  return items, ((length > 0) & (items != own)).astype(np.float32)


def _in_batches(place: np.ndarray, order: np.ndarray, first: int, size: int,
                draw: np.random.Generator) -> np.ndarray:
  """Shuffles batches of examples of like length.

  Args:
    place: [N] number of the width of each of them, in their order.
    order: [N] shuffled examples.
    first: of them fill up the batch that the epoch before began.
    size: of a batch.
    draw: shuffles the batches.

  Returns:
    [N] the examples: `first` of any length, whole batches, a rest.
  """
  whole = max(len(order) - first, 0) // size
  loose, kept = np.split(order, [len(order) - whole * size])
  kept = kept[np.argsort(place[len(loose):], kind='stable')]
  kept = draw.permutation(kept.reshape(whole, size))
  return np.concatenate([loose[:first], kept.reshape(-1), loose[first:]])


def _in_groups(
    user: np.ndarray, order: np.ndarray, most: int, draw: np.random.Generator
) -> np.ndarray:
  """Shuffles groups of at most `most` examples of one user.

  Args:
    user: [N] of each example.
    order: [N] a shuffled order of all examples.
    most: examples of a group; a user's last one may be smaller.
    draw: consumed.

  Returns:
    [N] an order in which the examples of a group stand together.
  """
  order = order[np.argsort(user[order], kind='stable')]
  first = np.flatnonzero(np.diff(user[order], prepend=-1))
  start = np.repeat(first, np.diff(first, append=len(order)))
  group = np.cumsum((np.arange(len(order)) - start) % most == 0) - 1
  place = draw.permutation(int(group[-1]) + 1)
  return order[np.argsort(place[group], kind='stable')]
