"""The contract of a tokenizer: a NamedTuple of pure functions.

Shapes as in `sidrec.types`. `params` is trained by gradient, `codebook` is
state that is not (stored codes, running statistics). The functions that a
train step calls (`init`, `encode`, `loss`, `update`, `prefix`, `codes`) are
pure JAX and may be jitted, differentiated and mapped; `fit`, `refresh`, `tend`
and `last_level` run on the host between steps, with NumPy arrays in and out,
and are deterministic, so that every process of a pod computes the same.

Stored codes are those of the quantizer; what becomes of items that share a
tuple is a step of its own (`collisions`).
"""

from typing import Any, NamedTuple, Protocol

import numpy as np

from sidrec import types

_RMS = (.2, 5.)  # Of standardized vectors it is 1.


class InitFn(Protocol):
  """Makes a cheap start."""

  def __call__(
      self, key: types.Array, sample: types.Array
  ) -> tuple[types.PyTree, types.PyTree]:
    """Makes a cheap start from a sample [N, D] of item vectors.

    Consumes `key`. Returns (params, codebook) with the final shapes and types;
    the stored codes are a placeholder until `fit`.
    """


class EncodeFn(Protocol):
  """Turns item vectors into codes."""

  def __call__(
      self,
      params: types.PyTree,
      codebook: types.PyTree,
      x: types.Array,
      *,
      key: types.Array | None = None,
      item: types.Array | None = None,
      noise: types.Array | float = 0.,
      live: types.Array | float = 1.,
      train: bool = False,
      axis_name: str | None = None,
  ) -> types.TokenizerOutput:
    """Tokenizes B item vectors.

    Args:
      params: trained tables.
      codebook: untrained state.
      x: [B, D] float32 item vectors.
      key: PRNG key of exploration noise, the same on all devices (noise is
        drawn by item id, so that replicas agree); None = no noise.
      item: [B] int32 item ids in [0, V), to read the stored codes; None for
        items outside the catalog, which get their nearest codes.
      noise: [] float32 scale of the noise; 0 = exactly the stored codes.
      live: [] float32, 1 = the codes still learn, 0 = they are frozen.
      train: True in a step that trains the tokenizer. A variant whose codes
        are a function of its parameters then computes them anew, whatever is
        stored, and may balance them over the batch; a variant that learns
        from stored codes (DIG) makes no difference.
      axis_name: data-parallel axis that such a batch spans, or None.

    Raises:
      ValueError: `item` is None and the variant only knows stored codes.
    """


class LossFn(Protocol):
  """Gives the tokenizer's own loss."""

  def __call__(
      self, params: types.PyTree, codebook: types.PyTree, x: types.Array,
      output: types.TokenizerOutput, *, item: types.Array | None = None,
      key: types.Array | None = None, axis_name: str | None = None
  ) -> tuple[types.Array, types.Metrics]:
    """Returns the tokenizer's own loss [B] and metrics, [B] float32 each.

    Args:
      params: trained tables.
      codebook: untrained state.
      x: [B, D] item vectors that `output` encodes.
      output: of `encode`, with train = True where the codes learn.
      item: [B] int32 item ids; None where the caller has none. Contrasts then
        cannot tell a repeated item from a negative.
      key: PRNG key of the loss's own draws (by item id, so that replicas
        agree).
      axis_name: data-parallel axis; contrasts see the candidates of all its
        devices, so that one device and many give the same loss.

    Raises:
      ValueError: the variant's loss needs `item` or `key` and got None.
    """


class UpdateFn(Protocol):
  """Follows the traffic of a step."""

  def __call__(
      self, codebook: types.PyTree, output: types.TokenizerOutput, *,
      mask: types.Array, axis_name: str | None
  ) -> types.PyTree:
    """Updates the statistics with the rows where mask [B] is 1.

    Sums run over all devices of `axis_name` (None = one device), so replicas
    stay identical.
    """


class PrefixFn(Protocol):
  """Embeds prefixes of codes."""

  def __call__(self, params: types.PyTree, codes: types.Array) -> types.Array:
    """Embeds prefixes of any length l in 1..L: [..., l] int32 -> [..., D]."""


class FitFn(Protocol):
  """Starts from all items."""

  def __call__(
      self, seed: int, params: types.PyTree, codebook: types.PyTree,
      vectors: types.Array, *, features: types.FeatureTable | None = None,
      collaborative: types.Array | None = None
  ) -> tuple[types.PyTree, types.PyTree]:
    """Starts tables and stored codes from all items (host).

    For a variant without a loss this is the whole training.

    Args:
      seed: of the draws.
      params, codebook: of `init`.
      vectors: [V, D] float32, standardized per dimension by the caller.
      features: item-static features, V rows, or None.
      collaborative: [V, C] float32 vectors from the interactions of the
        training split, or None.

    Raises:
      types.InputError: something that the variant needs is missing or of a
        size or scale that it cannot use.
    """


class RefreshFn(Protocol):
  """Gives all items their codes again."""

  def __call__(
      self, params: types.PyTree, codebook: types.PyTree, vectors: types.Array
  ) -> tuple[types.PyTree, dict[str, float]]:
    """Re-assigns the stored codes to item vectors [V, D] (host).

    Returns the new codebook and metrics, among them 'tokenizer/churn', the
    share of items whose code tuple changed.
    """


class TendFn(Protocol):
  """Host work between epochs."""

  def __call__(
      self, seed: int, epoch: int, params: types.PyTree,
      codebook: types.PyTree, vectors: types.Array
  ) -> tuple[types.PyTree, types.PyTree, dict[str, float]]:
    """Returns (params, codebook, metrics); the stored codes stay."""


class LastLevelFn(Protocol):
  """What a collision rule needs to know of the last level."""

  def __call__(
      self, params: types.PyTree, codebook: types.PyTree, vectors: types.Array
  ) -> tuple[types.Array, types.Array]:
    """Returns (residual [V, d] before level L, codewords [K_L, d]) (host)."""


class ReconstructFn(Protocol):
  """Gives codes their vectors back."""

  def __call__(self, params: types.PyTree, codes: types.Array) -> types.Array:
    """Decodes codes [V, L] int32 to item vectors [V, D] (host)."""


class CodesFn(Protocol):
  """Reads the stored codes."""

  def __call__(self, codebook: types.PyTree) -> types.Array:
    """Returns the stored codes [V, L] int32."""


class Tokenizer(NamedTuple):
  """A tokenizer variant, made by `make(config, spec)` of its module.

  num_levels: L.
  codebook_sizes: (K_1, ..., K_L).
  loss: None for a variant that is fitted, not trained by gradient. Its params
    hold what `prefix` reads and are not to be trained or decayed.
  prefix: None where codes have no vectors; `quantized` is then [B, L, 0].
  fit, refresh, tend, last_level: None where the variant has no such step.
  reconstruct: None where codes do not say what the item's vector was.
  """
  num_levels: int
  codebook_sizes: tuple[int, ...]
  init: InitFn
  encode: EncodeFn
  loss: LossFn | None
  update: UpdateFn
  prefix: PrefixFn | None
  fit: FitFn | None
  refresh: RefreshFn | None
  codes: CodesFn
  tend: TendFn | None = None
  last_level: LastLevelFn | None = None
  reconstruct: ReconstructFn | None = None


def check_capacity(config: Any, spec: types.DataSpec) -> None:
  """Refuses sizes that cannot give each item a code tuple of its own.

  Args:
    config: settings with `num_levels` and `codebook_size`.
    spec: of the data set.

  Raises:
    types.InputError: a size out of range, or V > K ** L.
  """
  if config.num_levels < 1:
    raise types.InputError(
        f'tokenizer.num_levels: {config.num_levels} must be at least 1.')
  if config.codebook_size < 2:
    raise types.InputError(
        f'tokenizer.codebook_size: {config.codebook_size} must be at least 2.')
  capacity = config.codebook_size**config.num_levels
  if spec.num_items > capacity:
    raise types.InputError(
        f'tokenizer.codebook_size: {config.codebook_size} codes on '
        f'{config.num_levels} levels name {capacity} items, the catalog has '
        f'{spec.num_items}; raise it, or tokenizer.num_levels.')


def check_choice(config: Any, name: str, options: tuple[str, ...]) -> None:
  """Refuses a setting that is not among the options.

  Args:
    config: settings.
    name: of the setting.
    options: what it may be.

  Raises:
    types.InputError: naming the setting and its options.
  """
  if config[name] not in options:
    raise types.InputError(
        f'tokenizer.{name}: {config[name]!r} is not one of '
        f'{", ".join(options)}.')


def check_range(
    config: Any, name: str, low: float, high: float = np.inf) -> None:
  """Refuses a number that is not in [low, high].

  Args:
    config: settings.
    name: of the setting.
    low, high: what it may be.

  Raises:
    types.InputError: naming the setting and its range.
  """
  if not low <= config[name] <= high:
    raise types.InputError(
        f'tokenizer.{name}: {config[name]} is not in [{low}, {high}].')


def host_vectors(
    vectors: types.Array, num_items: int, dim: int | None = None
) -> np.ndarray:
  """Checks the item vectors of a catalog.

  Args:
    vectors: [V, D].
    num_items: V.
    dim: D, or None for any.

  Returns:
    The vectors as [V, D] float32; not a copy where they are that already.

  Raises:
    ValueError: another shape.
    FloatingPointError: a value that is not finite.
  """
  vectors = np.asarray(vectors, np.float32)
  want = (num_items, vectors.shape[-1] if dim is None else dim)
  if vectors.shape != want:
    raise ValueError(f'Vectors have shape {vectors.shape}, not {want}.')
  # A sum is not finite where an entry is not, and needs no array of bools.
  if not np.isfinite(np.sum(vectors, dtype=np.float64)):
    raise FloatingPointError('Item vectors are not finite.')
  return vectors


def check_scale(vectors: np.ndarray) -> None:
  """Refuses vectors on which losses of distances mean something else.

  An auto-encoder whose errors are means over dimensions stands still where a
  dimension varies by 1 / sqrt(D), as in vectors of length one: reconstruction
  has next to nothing to give, and commitment pulls all latents together.

  Args:
    vectors: [V, D].

  Raises:
    types.InputError: the root mean square is far from 1.
  """
  rms = float(np.sqrt(np.mean(np.square(vectors), dtype=np.float64)))
  if not _RMS[0] <= rms <= _RMS[1]:
    raise types.InputError(
        f'item vectors: their root mean square is {rms:.3g}, this tokenizer '
        f'needs about 1; standardize each dimension.')


def counting_codes(num_items: int, num_levels: int, num_codes: int
                   ) -> np.ndarray:
  """Returns placeholder codes [V, L] int32 that count up in base K."""
  number = np.arange(num_items, dtype=np.int64)
  return np.stack([
      number // num_codes**(num_levels - 1 - level) % num_codes
      for level in range(num_levels)], 1).astype(np.int32)


def churn(new: np.ndarray, old: np.ndarray) -> dict[str, float]:
  """Says how many items changed their code tuple, and their first code.

  Args:
    new, old: [V, L] codes.

  Returns:
    'tokenizer/churn' and 'tokenizer/churn@1', shares of items.
  """
  changed = np.asarray(new) != np.asarray(old)
  return {'tokenizer/churn': float(np.mean(changed.any(1))),
          'tokenizer/churn@1': float(np.mean(changed[:, 0]))}


def keep(
    codebook: types.PyTree, output: types.TokenizerOutput, *,
    mask: types.Array, axis_name: str | None
) -> types.PyTree:
  """Returns the codebook as it is: the `update` of a variant without one."""
  del output, mask, axis_name
  return codebook


def stored_codes(codebook: types.PyTree) -> types.Array:
  """Returns the entry 'codes' [V, L] int32."""
  return codebook['codes']
