"""The contract of a tokenizer: a NamedTuple of pure functions.

Shapes as in `sidrec.types`. `params` is trained by gradient, `codebook` is
state that is not (stored codes, running statistics). The functions that a
train step calls (`init`, `encode`, `loss`, `update`, `prefix`, `codes`) are
pure JAX and may be jitted, differentiated and mapped; `fit` and `refresh` run
on the host between steps, with NumPy arrays in and out, and are deterministic,
so that every process of a pod computes the same.
"""

from typing import Any, NamedTuple, Protocol

from sidrec import types


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
    """


class LossFn(Protocol):
  """Gives the tokenizer's own loss."""

  def __call__(
      self, params: types.PyTree, codebook: types.PyTree, x: types.Array,
      output: types.TokenizerOutput
  ) -> tuple[types.Array, types.Metrics]:
    """Returns the tokenizer's own loss [B] and metrics, [B] float32 each."""


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
      vectors: types.Array
  ) -> tuple[types.PyTree, types.PyTree]:
    """Starts tables and stored codes from all item vectors [V, D] (host)."""


class RefreshFn(Protocol):
  """Gives all items their codes again."""

  def __call__(
      self, params: types.PyTree, codebook: types.PyTree, vectors: types.Array
  ) -> tuple[types.PyTree, dict[str, float]]:
    """Re-assigns the stored codes to item vectors [V, D] (host).

    Returns the new codebook and metrics, among them 'tokenizer/churn', the
    share of items whose code tuple changed.
    """


class CodesFn(Protocol):
  """Reads the stored codes."""

  def __call__(self, codebook: types.PyTree) -> types.Array:
    """Returns the stored codes [V, L] int32."""


class Tokenizer(NamedTuple):
  """A tokenizer variant, made by `make(config, spec)` of its module.

  num_levels: L.
  codebook_sizes: (K_1, ..., K_L).
  fit, refresh: None where the variant has no such step.
  """
  num_levels: int
  codebook_sizes: tuple[int, ...]
  init: InitFn
  encode: EncodeFn
  loss: LossFn
  update: UpdateFn
  prefix: PrefixFn
  fit: FitFn | None
  refresh: RefreshFn | None
  codes: CodesFn


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
