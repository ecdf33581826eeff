"""The contracts of tokenizers: NamedTuples of pure functions.

A `Tokenizer` has codes that are a function of codewords; the codes of a `Table`
are a table, and no vector says them. Shapes as in `sidrec.types`, and d for the
width of codewords.

The codes of the catalog live with the caller alone (`variables['codes']` of the
state): a tokenizer is handed the rows that it should read (`stored`), and hands
codes back. `params` is trained by gradient, `variables` changes without one
(running statistics). What a train step calls is pure JAX and may be jitted,
differentiated and mapped; `start`, `assign`, `between`, `fit` and `place` run
on the host between steps, with NumPy arrays in and out, and are deterministic,
so that every process of a pod computes the same.

Codes are those of the quantizer; what becomes of items that share a tuple is a
step of its own (`collisions`).
"""

import math
from typing import Any, Callable, Mapping, NamedTuple, Protocol

import jax
import numpy as np

from sidrec import types
from sidrec.config import ranges
from sidrec.tokenizers import walk

_MOST = 1 << 62  # Tuples to draw from: their numbers are int64.


def _fits(own: Mapping[str, Any], _: Any) -> bool:
  """Whether there is a size a level, and a number for each tuple."""
  sizes, levels = own['codebook_size'], own['num_levels']
  sizes = [sizes] * levels if isinstance(sizes, int) else sizes
  return len(sizes) == levels and math.prod(sizes) <= _MOST


_SIZE = ranges.whole(2, 1 << 24)
# What all tokenizers have; a module with further settings has a table of its
# own.
RANGES: ranges.Table = {
    'num_levels': ranges.whole(1, 64),
    'codebook_size': ranges.either(_SIZE, ranges.several(_SIZE)).that(
        f'one for all levels or one a level, for at most {_MOST} tuples',
        _fits)}


class Items(NamedTuple):
  """What may be read of V items on the host, all NumPy.

  ids: [V] ids of the items.
  vectors: [V, D] float32, standardized per dimension; None where there are
    none.
  features: item-static features, V rows.
  popularity: [V] float32, positive events of the training split.
  collaborative: [V, C] float32 vectors from the interactions of the training
    split, or None.
  latents: [V, d] float32, `Tokenizer.latent` of the vectors under the params
    at hand, which the caller computes on the devices before each call; None
    where the tokenizer has no encoder.
  """
  ids: np.ndarray
  vectors: np.ndarray | None
  features: types.FeatureTable
  popularity: np.ndarray
  collaborative: np.ndarray | None = None
  latents: np.ndarray | None = None


class Explore(NamedTuple):
  """Noise on the choice of codes.

  item: [N] int32 item ids: equal items draw the same, so replicas agree.
  key: PRNG key, the same on all devices.
  sigma: [] float32 scale of the noise; 0 = none.
  """
  item: jax.Array
  key: jax.Array
  sigma: jax.Array


class QuantizeFn(Protocol):
  """Gives vectors their codes."""

  def __call__(
      self, params: types.PyTree, variables: types.PyTree, z: types.Array, *,
      stored: types.Array | None = None, explore: Explore | None = None,
      train: bool = False, axis_name: str | None = None
  ) -> walk.Path:
    """Quantizes N vectors, of items or not.

    Args:
      params: trained tables.
      variables: untrained state.
      z: [N, d] of `latent`, or any vector of that width.
      stored: [N, L] int32 codes to read (rows of the catalog's table); None =
        the nearest ones.
      explore: noise on the choice, or None; a tokenizer that does not explore
        ignores it.
      train: True in a step that trains the tokenizer, which may then balance
        the codes that it chooses over the batch.
      axis_name: data-parallel axis that such a batch spans, or None.

    Returns:
      The path; without noise its codes are `stored` where they are given.
    """


class LossFn(Protocol):
  """Gives the tokenizer's own loss."""

  def __call__(
      self, params: types.PyTree, variables: types.PyTree, x: types.Array,
      path: walk.Path, *, item: types.Array | None = None,
      stored: types.Array | None = None, explore: Explore | None = None,
      key: types.Array | None = None, axis_name: str | None = None
  ) -> tuple[types.Array, types.Metrics]:
    """Returns the tokenizer's own loss [N] and metrics, [N] float32 each.

    Args:
      params: trained tables.
      variables: untrained state.
      x: [N, D] item vectors, before `latent`.
      path: what `quantize` made of them.
      item: [N] int32 item ids; None where the caller has none. Contrasts then
        cannot tell a repeated item from a negative.
      stored, explore: what `quantize` was given.
      key: PRNG key of the loss's own draws (by item id, so that replicas
        agree).
      axis_name: data-parallel axis; contrasts see the candidates of all its
        devices, so that one device and many give the same loss.

    Raises:
      ValueError: the variant's loss needs `item` or `key` and got None.
    """


class ReadFn(Protocol):
  """Gives prefixes the vectors that other models read."""

  def __call__(
      self, params: types.PyTree, variables: types.PyTree, path: walk.Path,
      z: types.Array, *, explore: Explore | None = None, live: bool = True
  ) -> types.Array:
    """Returns the sums [N, L, d] of the codewords of each prefix.

    Their values are those of `walk.prefix` on `books`; where the gradient
    goes is the variant's choice (`walk.straight_through`, of most).

    Args:
      params: trained tables.
      variables: untrained state.
      path: of `quantize`.
      z: [N, d] what it quantized.
      explore: what it was given.
      live: False = codes are frozen, nothing is to reach what decides them.
    """


class UpdateFn(Protocol):
  """Follows the traffic of a step."""

  def __call__(
      self, variables: types.PyTree, path: walk.Path, *, mask: types.Array,
      axis_name: str | None
  ) -> types.PyTree:
    """Updates the statistics with the rows where mask [N] is 1.

    Sums run over all devices of `axis_name` (None = one device), so replicas
    stay identical.
    """


class StartFn(Protocol):
  """Starts from all items."""

  def __call__(
      self, seed: int, params: types.PyTree, variables: types.PyTree,
      items: Items
  ) -> tuple[types.PyTree, types.PyTree, np.ndarray | None]:
    """Starts tables from all items; of a variant without a loss, all there is.

    Returns:
      (params, variables, codes [V, L] int32 where the fit itself made them
      and `assign` would not, or None).

    Raises:
      types.InputError: something that the variant needs is missing or of a
        size or scale that it cannot use.
    """


class AssignFn(Protocol):
  """Gives all items their codes."""

  def __call__(
      self, params: types.PyTree, variables: types.PyTree, items: Items,
      old: np.ndarray | None
  ) -> tuple[np.ndarray, dict[str, float]]:
    """Assigns codes to items.

    They agree with those of `quantize`, up to ties, unless sizes are bounded.

    Args:
      params: trained tables.
      variables: untrained state.
      items: V items, of the catalog or new ones.
      old: [V, L] their codes so far, to say what changed (a variant may stay
        near to them), or None.

    Returns:
      (codes [V, L] int32, metrics: `metrics.code_statistics` or others of
      whole catalogs, and with `old` those of `churn`).
    """


# (seed, how often before, params, variables, items) -> (params, variables,
# metrics).
BetweenFn = Callable[
    [int, int, types.PyTree, types.PyTree, Items],
    tuple[types.PyTree, types.PyTree, dict[str, float]]]


class Tokenizer(NamedTuple):
  """A variant whose codes are a function of codewords.

  sizes: (K_1, ..., K_L).
  init: (key, D) -> (params, variables) with their final shapes and types, as
    yet without knowledge of the items; consumes `key`.
  latent: (params, x [N, D]) -> [N, d]; the identity where there is no encoder.
  quantize, loss, read, update, start, assign: see their types. loss is None for
    a variant that is fitted, not trained by gradient: its params are not to be
    trained or decayed. update is None where there are no statistics.
  books: (params) -> L of [K_l, d], the codewords that are read.
  decode: (params, zhat [N, d]) -> [N, D]; None where codes do not say what the
    vector was.
  between: host work between epochs, or None.
  """
  sizes: tuple[int, ...]
  init: Callable[[jax.Array, int], tuple[types.PyTree, types.PyTree]]
  latent: Callable[[types.PyTree, types.Array], types.Array]
  quantize: QuantizeFn
  books: Callable[[types.PyTree], tuple[types.Array, ...]]
  decode: Callable[[types.PyTree, types.Array], types.Array] | None
  loss: LossFn | None
  start: StartFn
  assign: AssignFn
  read: ReadFn
  between: BetweenFn | None = None
  update: UpdateFn | None = None


class Table(NamedTuple):
  """A variant whose codes are a table: only items have any.

  sizes: (K_1, ..., K_L).
  fit: (seed, items) -> codes [V, L] int32; raises types.InputError where the
    items have not what it needs.
  place: (items, new items) -> codes of the new ones, or None.
  """
  sizes: tuple[int, ...]
  fit: Callable[[int, Items], np.ndarray]
  place: Callable[[Items, Items], np.ndarray] | None = None


def sizes(config: Any) -> tuple[int, ...]:
  """Returns the sizes (K_1, ..., K_L) that settings ask for.

  Args:
    config: with `num_levels` (L) and `codebook_size`, one number for all
      levels, or one a level.
  """
  if isinstance(config.codebook_size, int):
    return (config.codebook_size,) * config.num_levels
  return tuple(config.codebook_size)


def placeholder(
    num_items: int, codebook_sizes: tuple[int, ...], seed: int = 0
) -> np.ndarray:
  """Draws random codes for items that have none yet.

  Args:
    num_items: V.
    codebook_sizes: (K_1, ..., K_L).
    seed: of the draws.

  Returns:
    [V, L] int32; all tuples are distinct where there are enough of them.
  """
  rng = np.random.default_rng(seed)
  most = min(math.prod(codebook_sizes), _MOST)
  number = rng.choice(most, num_items, replace=num_items > most)
  codes = np.empty((num_items, len(codebook_sizes)), np.int32)
  for level in reversed(range(len(codebook_sizes))):
    number, codes[:, level] = np.divmod(number, codebook_sizes[level])
  return codes


def churn(new: np.ndarray, old: np.ndarray | None) -> dict[str, float]:
  """Says how many items changed their code tuple, and their first code.

  Args:
    new: [V, L] codes.
    old: [V, L] codes, or None: nothing to say.

  Returns:
    'tokenizer/churn' and 'tokenizer/churn@1', shares of items.
  """
  if old is None:
    return {}
  changed = np.asarray(new) != np.asarray(old)
  return {'tokenizer/churn': float(np.mean(changed.any(1))),
          'tokenizer/churn@1': float(np.mean(changed[:, 0]))}
