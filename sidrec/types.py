"""Names every concept of sidrec before any algorithm does.

Shape legend, the same letters in every docstring of the package:

  B  batch (rows of a batch)      T  history length
  C  candidates a row             L  levels of a semantic ID (SID)
  V  items in the catalog         K  codes a level
  U  users                        D  width of a vector
  W  beam width                   N  trie nodes
  X  cross (u2i) statistics       J  feature fields
  F  statistics known of items    G  moments they are known of
  E  events in the log            S  seeds

Masks: 1 (or True) means valid, everywhere.
"""

import dataclasses
import enum
from typing import Any, Mapping

import chex
import jax
import numpy as np

Array = jax.Array | np.ndarray
PyTree = Any
Metrics = Mapping[str, Any]

AXIS = 'device'  # The one name of the data-parallel axis.


class InputError(ValueError):
  """Bad configuration or bad input: `main` prints it and exits with 2."""


class Role(enum.Enum):
  """What a column may be used for (the DIG taxonomy, arXiv 2605.14853).

  ITEM_STATIC: Type I, known without a user; the only input of a tokenizer.
  REQUEST: Type II, the user and the context of the request.
  CROSS: Type III (u2i), statistics of this user with this item, accumulated
    only over events strictly before the sample.
  NEVER: must not become a feature (labels, or columns that leak the future).
  """
  ITEM_STATIC = 'item_static'
  REQUEST = 'request'
  CROSS = 'cross'
  NEVER = 'never'


@dataclasses.dataclass(frozen=True)
class Field:
  """One encoded feature.

  name: column name.
  role: what it may be used for.
  kind: 'category' (columns `start:stop` of `FeatureTable.ids`), 'number'
    (of `.values`) or 'vector' (of `.vectors`).
  start, stop: the columns it owns.
  size: number of distinct non-missing categories; the width otherwise.
  """
  name: str
  role: Role
  kind: str
  start: int
  stop: int
  size: int


@dataclasses.dataclass(frozen=True)
class FeatureSpec:
  """Static description of a `FeatureTable`.

  fields: the fields, in order.
  vocabulary: rows of the joint embedding table: 1 + sum of sizes; row 0 means
    missing, whatever the field.
  num_slots, num_values, num_dims: widths of `ids`, `values` and `vectors`.
  """
  fields: tuple[Field, ...] = ()
  vocabulary: int = 1
  num_slots: int = 0
  num_values: int = 0
  num_dims: int = 0


@chex.dataclass(frozen=True, mappable_dataclass=False)
class FeatureTable:
  """Encoded features of R rows (items, or requests).

  A kind of which there is no column is None, not an array of no width.

  ids: [R, slots] int32 rows of the joint vocabulary, 0 = missing or padding.
  values: [R, values] float32 standardized numbers; a missing number is 0 and
    its indicator column (one a numeric field) is 1.
  vectors: [R, dims] float32, for instance sentence embeddings.
  """
  ids: Array | None = None
  values: Array | None = None
  vectors: Array | None = None


@chex.dataclass(frozen=True, mappable_dataclass=False)
class Known:
  """What is known of items at G moments, whoever asks (`data.known`).

  values: [G, V, F] float32 statistics.
  weight: [G, V] float32 > 0: what items count for in the mean of a prefix.
  """
  values: Array
  weight: Array


@chex.dataclass(frozen=True, mappable_dataclass=False)
class Catalog:
  """What a step may know of all items; lives on the device beside the state.

  features: item-static features, V rows.
  popularity: [V] float32, positive events of the training split.
  vectors: [V, D] float32 content vectors, standardized a dimension, which
    content tokenizers read; None where nothing is said of the items.
  known: what requests know of them; None where times cannot be compared, or
    nobody asked.
  """
  features: FeatureTable
  popularity: Array
  vectors: Array | None = None
  known: Known | None = None


@dataclasses.dataclass(frozen=True)
class DataSpec:
  """Static facts that a method needs to build its modules.

  has_negatives: False where every event of the log is a positive; ranking
    rows then need sampled negatives.
  vector_dim: D of `Catalog.vectors`; 0 where there are none.
  known_names: of the statistics in `Catalog.known`.
  seen_length: places of `Batch.seen`; 0 = there is none.
  """
  num_items: int
  num_users: int
  items: FeatureSpec
  request: FeatureSpec
  cross_names: tuple[str, ...]
  num_actions: int
  history_length: int
  has_negatives: bool = True
  vector_dim: int = 0
  known_names: tuple[str, ...] = ()
  seen_length: int = 0


@chex.dataclass(frozen=True, mappable_dataclass=False)
class Sequence:
  """B rows of S places: what users did, oldest first.

  The one form of sequences: what generators and item models learn from, the
  histories of requests (newest last, padding in front), whole logs of users.

  row: [B] int32 index of the row in the global batch (keys of per-row noise).
  user: [B, S] int32 in [0, U]; U is the unknown user, and of no place.
  item: [B, S] int32 in [0, V), 0 where nothing is.
  action: [B, S] int32 what the user did with it, in [0, num_actions).
  time: [B, S] int32 seconds since the log began (positions where its times
    are positions), 0 before it.
  segment: [B, S] int32 which sequence of the row, from 1; 0 = nothing.
  label: [B, S] float32 in {0, 1}.
  target: [B, S] float32, 1 = to be predicted from what stands before it in its
    segment, 0 = only read.
  """
  row: Array
  user: Array
  item: Array
  action: Array
  time: Array
  segment: Array
  label: Array
  target: Array


@chex.dataclass(frozen=True, mappable_dataclass=False)
class Seen:
  """What B users have seen, further back than their histories go.

  item: [B, N] int32, 0 where nothing is. action: [B, N] int32.
  mask: [B, N] float32, 1 = valid; newest last, nothing in front.
  """
  item: Array
  action: Array
  mask: Array


@chex.dataclass(frozen=True, mappable_dataclass=False)
class Batch:
  """B requests with C candidates each, all features point in time.

  row: [B] int32 index of the row in the global batch (keys of per-row noise).
  user: [B] int32 in [0, U]; U is the unknown user.
  request: request features, B rows.
  history: [B, T] each: what the user did before, newest last.
  item: [B, C] int32 candidate items in [0, V).
  label: [B, C] float32 in {0, 1}.
  mask: [B, C] float32, 1 = valid candidate.
  cross: [B, C, X] float32 u2i statistics of the user with the candidate; None
    where X = 0.
  time: [B] int32 of the request, as `Sequence.time`. midnight: [B] that of the
    midnight before it, up to which rankers know what users did with items.
  moment: [B] int32 in [0, G): which of `Catalog.known` the request reads; None
    where there is none.
  seen: what the users have seen, None where nobody asked.
  """
  row: Array
  user: Array
  request: FeatureTable
  history: Sequence
  item: Array
  label: Array
  mask: Array
  cross: Array | None
  time: Array | None = None
  midnight: Array | None = None
  moment: Array | None = None
  seen: Seen | None = None


@chex.dataclass(frozen=True, mappable_dataclass=False)
class ItemBatch:
  """B items of the catalog.

  row: [B] int32 index of the row in the global batch.
  item: [B] int32 in [0, V).
  """
  row: Array
  item: Array


@dataclasses.dataclass(frozen=True)
class StreamSpec:
  """Which examples a program reads, and how they become candidates.

  examples: 'impressions' (every event of the training split), 'positives'
    (those with label 1), both as `Batch`; 'items' (the catalog: `ItemBatch`);
    or 'sequences' (users' events in order of time: `Sequence`).
  batch_size: rows B of the *global* batch.
  negatives: items drawn uniformly from the catalog for each row; candidate 0
    is the event's own item, so C = 1 + negatives.
  seen_negatives: items drawn from what the row's user has seen; they stand
    last. The mask is 0 where that is nothing, or the draw is the row's
    positive.
  user_rows: events of one user that stand together (for losses over pairs of
    one user's rows); such groups are shuffled, not events. 1: none do.
  events: of sequences: 'positives' (label 1 alone) or 'all'.
  layout: of sequences: 'packed' (several users' sequences share a row of
    `length` places, every item but the first of each is a target once) or
    'last' (a row a target: its history, and the target as the last place).
  length: S, places of a packed row.
  widths: of 'last': lengths, ascending, that histories are cut to, the last
    that of the data: examples of like length stand together, and a batch is as
    long as its longest history needs (S = width + 1). Each width compiles a
    program. (): all have the data's length.
  """
  examples: str
  batch_size: int
  negatives: int = 0
  seen_negatives: int = 0
  user_rows: int = 1
  events: str = 'positives'
  layout: str = 'packed'
  length: int = 0
  widths: tuple[int, ...] = ()


@chex.dataclass(frozen=True, mappable_dataclass=False)
class Trie:
  """Prefix trie of a catalog's codes as flat arrays (`sidrec.trie`).

  Level l (1-based) nodes are numbered 0..n_l-1 in lexicographic order of
  their prefix; the children of a node are contiguous in the next level. The
  nodes of the last level are the items: those that share a code are siblings,
  ascending by id.

  first_child: tuple of L arrays [n_{l-1} + 1] int32: children of node i are
    first_child[l-1][i] : first_child[l-1][i + 1] (n_0 = 1, the root).
  code: tuple of L arrays [n_l] uint8, uint16 or int32, as narrow as the
    codes allow: last code of each node's prefix.
  items: [V] int32 item ids in the order of the last level, n_L = V.
  allowed: None, or a tuple of L arrays [n_l] bool: nodes that a search may
    enter (`trie.restrict`).
  """
  first_child: tuple[Array, ...]
  code: tuple[Array, ...]
  items: Array
  allowed: tuple[Array, ...] | None = None


@chex.dataclass(frozen=True, mappable_dataclass=False)
class Beams:
  """W retrieved items a user, best first.

  item: [B, W] int32 (0 where not valid).
  code: [B, W, L] int32.
  score: [B, W] float32, in the unit of the decoder's level scores.
  mask: [B, W] bool, True = a real item.
  """
  item: Array
  code: Array
  score: Array
  mask: Array


@chex.dataclass(frozen=True, mappable_dataclass=False)
class TrainState:
  """Everything that changes while training.

  params: {part: tree}, trained by gradient.
  variables: {name: tree}, all that changes without a gradient: 'codes' [V, T]
    int32 of the served semantic IDs, learned item vectors, batch statistics,
    running sums, caches.
  opt_state: {optimizer: tree}; lives as long as the run.
  clock: {program: [] int32} steps that each has done: keys, batches and noise
    schedules read it.
  seed: [] uint32 of the run.
  """
  params: PyTree
  variables: PyTree
  opt_state: PyTree
  clock: PyTree
  seed: Array
