"""The residual recursion, once for traced code and once for the host.

    r_1 = x;  c_l = choose(|r_l - e_lk|^2 over k);  q_l = e_l[c_l];
    r_{l+1} = r_l - q_l

Codebooks may have any sizes, one a level, and x may be any vector of their
width: an item's, or what a model has made of a user. `walk` is JAX and keeps
all that losses read; `descend` is NumPy, for whole catalogs, and may fit the
codebooks as it goes.

How gradients pass a level (`LEFT`) decides who learns:
  code_family: r - (r + sg(q - r)), as published code has it: the residual of
    levels 2 and up is a constant, so their commitment moves nothing.
  paper: r - q: commitment of a level moves the encoder and earlier codewords.
  sg: r - sg(q): commitment moves the encoder alone, on every level.
The codewords of a level learn from its codebook loss in all three.
"""

from typing import Callable, NamedTuple, Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np

from sidrec import types
from sidrec.tokenizers import kmeans

# (level from 0, squared distances [N, K]) -> codes [N].
Choose = Callable[[int, jax.Array], jax.Array]
# (residual [N, d], codeword [N, d]) -> what is left [N, d].
Left = Callable[[jax.Array, jax.Array], jax.Array]
# (level from 0, residuals [n, d]) -> (codes [n], codebook [K, d]), on the host.
LevelFn = Callable[[int, np.ndarray], tuple[np.ndarray, np.ndarray]]


class Path(NamedTuple):
  """The way of N vectors through L codebooks.

  codes: [N, L] int32.
  distances: L of [N, K_l] float32, squared, of the residual to all codewords.
  residuals: [N, L, d] float32, before each level; the first is the vector.
  words: [N, L, d] float32, the chosen rows, with gradient to the codebook.
  """
  codes: jax.Array
  distances: tuple[jax.Array, ...]
  residuals: jax.Array
  words: jax.Array


def squared(x: jax.Array, book: jax.Array) -> jax.Array:
  """Returns squared Euclidean distances [N, K] of [N, d] to [K, d]."""
  # Full precision: differences of distances decide, and TPUs would round.
  cross = jnp.matmul(x, book.T, precision=jax.lax.Precision.HIGHEST)
  return (jnp.sum(x * x, -1)[:, None] - 2 * cross
          + jnp.sum(book * book, -1)[None])


def nearest(level: int, distances: jax.Array) -> jax.Array:
  """Chooses the nearest codeword: [N, K] -> [N]."""
  del level
  return jnp.argmin(distances, -1)


def reading(stored: types.Array | None) -> Choose:
  """Makes a `choose` that reads codes [N, L]; the nearest ones if None."""
  return nearest if stored is None else lambda level, _: stored[:, level]


def _code_family(residual: jax.Array, word: jax.Array) -> jax.Array:
  return residual - (residual + jax.lax.stop_gradient(word - residual))


def _paper(residual: jax.Array, word: jax.Array) -> jax.Array:
  return residual - word


def _sg(residual: jax.Array, word: jax.Array) -> jax.Array:
  return residual - jax.lax.stop_gradient(word)


LEFT = {'code_family': _code_family, 'paper': _paper, 'sg': _sg}


def walk(
    books: Sequence[jax.Array], x: jax.Array, choose: Choose = nearest,
    left: Left = _sg
) -> Path:
  """Quantizes vectors level by level.

  Args:
    books: L of [K_l, d].
    x: [N, d] float.
    choose: how codes come from distances.
    left: how gradients pass a level, one of `LEFT`.

  Returns:
    The path. Its values are those of every `left`; gradients reach the
    codebooks through `words` and `distances`, x through `residuals` and
    `distances`.
  """
  chex.assert_rank(x, 2)
  chex.assert_shape(books, (None, x.shape[1]))
  residual, levels = jnp.asarray(x, jnp.float32), []
  for level, book in enumerate(books):
    distances = squared(residual, book)
    code = choose(level, distances).astype(jnp.int32)
    word = book[code]
    levels.append((code, distances, residual, word))
    residual = left(residual, word)
  codes, distances, residuals, words = zip(*levels)
  return Path(jnp.stack(codes, 1), distances, jnp.stack(residuals, 1),
              jnp.stack(words, 1))


def prefix(books: Sequence[types.Array], codes: types.Array) -> types.Array:
  """Sums the codewords of a prefix: [..., l] int32 -> [..., d].

  Args:
    books: at least l of [K_l, d]; NumPy stays NumPy.
    codes: of a prefix of any length l from 1.
  """
  return sum(books[level][codes[..., level]]
             for level in range(codes.shape[-1]))


def straight_through(path: Path, x: jax.Array) -> jax.Array:
  """Returns prefix sums [N, L, d] of codewords with the gradient of x [N, d].

  None reaches the codewords.
  """
  sg = jax.lax.stop_gradient
  return jnp.cumsum(sg(path.words), 1) + (x - sg(x))[:, None]


def probabilities(path: Path, tau: float) -> tuple[jax.Array, ...]:
  """Returns softmax(-distance / tau) of each level, L of [N, K_l].

  Args:
    path: of `walk`.
    tau: temperature, in the unit of the squared distances.
  """
  return tuple(jax.nn.softmax(-dist / tau, -1) for dist in path.distances)


def weights(path: Path, tau: float) -> tuple[jax.Array, ...]:
  """Returns codes as weights, L of [N, K_l]: one-hot, gradient of soft ones.

  Args:
    path, tau: as `probabilities`.
  """
  return tuple(
      jax.nn.one_hot(path.codes[:, level], p.shape[-1]) + (
          p - jax.lax.stop_gradient(p))
      for level, p in enumerate(probabilities(path, tau)))


def descend(
    level_fn: LevelFn, x: np.ndarray, num_levels: int
) -> tuple[np.ndarray, tuple[np.ndarray, ...], np.ndarray]:
  """Quantizes vectors level by level on the host, in chunks of rows.

  Args:
    level_fn: chooses the codes of a level, from a codebook that it knows
      (`to_nearest`, `along`) or that it fits to the residuals it is given
      (which it must leave as they are).
    x: [n, d]; left as it is, one copy is made.
    num_levels: L.

  Returns:
    (codes [n, L] int32, books L of [K_l, d], what is left of x [n, d] float32
    after the last level).
  """
  rest = np.array(x, np.float32)
  codes = np.empty((len(rest), num_levels), np.int32)
  books = []
  for level in range(num_levels):
    codes[:, level], book = level_fn(level, rest)
    for start in range(0, len(rest), kmeans.CHUNK):
      rows = slice(start, start + kmeans.CHUNK)
      rest[rows] -= book[codes[rows, level]]
    books.append(book)
  return codes, tuple(books), rest


def to_nearest(books: Sequence[types.Array]) -> LevelFn:
  """Makes a `level_fn` of fixed codebooks, L of [K_l, d]: nearest codes."""
  books = tuple(np.asarray(book) for book in books)
  return lambda level, rest: (
      kmeans.nearest(rest, books[level])[0], books[level])


def along(books: Sequence[types.Array], codes: np.ndarray) -> LevelFn:
  """Makes a `level_fn` of fixed codebooks and codes [n, L] that stand."""
  books = tuple(np.asarray(book) for book in books)
  return lambda level, rest: (codes[:, level], books[level])
