"""What the stages of a run cost, by arithmetic: FLOPs and bytes.

A stage is known by its settings, not by the name of a method: rows of packed
sequences (`row_items`), exposures before a tower (`experts`), batches of items
(an auto-encoder's `hidden`), k-means on the host (`kmeans_steps`), and what is
evaluated in between. Matrix products count by their FLOPs, everything else by
the float32 numbers that it reads or writes; a backward pass is twice the
forward one. Letters as in `types`.
"""

import dataclasses
import math
from typing import Any, Sequence

from sidrec import types

_BACKWARD = 3  # Forward and backward, in forward passes.
_ADAM = 12  # Numbers a step reads and writes for each parameter.
_LOOK = 24  # Numbers that looking up one u2i statistic on the host is worth.
_KEPT = 4  # Of the numbers that a pass touches, one in so many is kept.
_START_ROWS = 32  # Rows a cluster that a k-means start looks at.


@dataclasses.dataclass(frozen=True)
class Work:
  """What is to be done.

  flops: of matrix products.
  numbers: float32 numbers read or written by all else.
  calls: of compiled programs, each with its batch.
  """
  flops: float = 0.
  numbers: float = 0.
  calls: float = 0.

  def __add__(self, other: 'Work') -> 'Work':
    return Work(self.flops + other.flops, self.numbers + other.numbers,
                self.calls + other.calls)

  def __mul__(self, times: float) -> 'Work':
    return Work(self.flops * times, self.numbers * times, self.calls * times)


@dataclasses.dataclass(frozen=True)
class Step:
  """A compiled program that is called again and again.

  work: of a call, backward pass and optimizer included.
  params: that it trains.
  kept: numbers of its activations.
  compiling: seconds that take much the same everywhere.
  """
  work: Work
  params: int
  kept: float
  compiling: float


def step(forward: Work, params: int, compiling: float = 9.) -> Step:
  """Makes a training step of its forward pass."""
  return Step(forward * _BACKWARD + Work(0, _ADAM * params, 1), params,
              forward.numbers / _KEPT, compiling)


def layers(rows: float, *widths: int) -> Work:
  """Returns the work of dense layers on rows, one after the other."""
  pairs = list(zip(widths, widths[1:]))
  return Work(2 * rows * sum(a * b for a, b in pairs),
              rows * sum(a + 3 * b for a, b in pairs))


def trunk(rows: float, places: int, dim: int, num_layers: int, inner: int,
          hidden: int, num_heads: int) -> tuple[Work, int]:
  """Returns (work, parameters) of a transformer.

  Args:
    rows: R, of S `places` each.
    places: S.
    dim, num_layers, hidden: of the stack.
    inner: width of all heads together.
    num_heads: H.
  """
  tokens = rows * places
  block = (layers(tokens, dim, 3 * inner) + layers(tokens, inner, dim)
           + layers(tokens, dim, hidden, dim)
           + Work(4 * tokens * places * inner,
                  # Softmax over the row; norms, turns and dropout.
                  6 * tokens * places * num_heads
                  + tokens * (16 * dim + 6 * inner)))
  return block * num_layers, num_layers * (
      4 * dim * inner + 2 * dim * hidden)


def item_trunk(rows: float, places: int, model: Any) -> tuple[Work, int]:
  """Returns the trunk of an item model: `model` has its settings."""
  return trunk(rows, places, model.dim, model.num_layers, model.dim,
               4 * model.dim, model.num_heads)


def item_model(model: Any, train: Any, num_items: int) -> Step:
  """Returns the step of an item model on packed sequences.

  The softmax of each place runs over drawn items and those of its row.
  """
  rows, places = train.batch_size, train.row_items
  forward, params = item_trunk(rows, places, model)
  drawn = min(train.negatives or num_items, num_items)
  tokens, width = rows * places, drawn + places
  forward += Work(2 * tokens * width * model.dim, 8 * tokens * width)
  # Which of the drawn items a place has seen: no gradient, but a product.
  seen = Work(2 * tokens * places * drawn, 3 * tokens * drawn)
  return step(forward + seen * (1 / _BACKWARD),
              params + num_items * model.dim)


def generator(model: Any, rows: int, places: int, sizes: Sequence[int],
              levels_read: int = 1) -> Step:
  """Returns the step of a generator of codes.

  Args:
    model: `config.generator`.
    rows: of the batch.
    places: positions of a row.
    sizes: K_1, ..., K_T.
    levels_read: positions an item: 1 of packed rows, T where each code is one.
  """
  inner = model.num_heads * model.head_dim
  forward, params = trunk(
      rows, places * levels_read, model.dim, model.num_layers, inner,
      model.hidden, model.num_heads)
  writes = rows * places if levels_read == 1 else rows
  forward += written(model, writes, sizes)
  return step(forward, params + 3 * sum(sizes) * model.dim)


def written(model: Any, rows: float, sizes: Sequence[int]) -> Work:
  """Returns the work of writing all levels for rows."""
  total = Work()
  for size in sizes:
    total += layers(rows, model.dim, model.hidden, model.dim, size)
  return total


def auto_encoder(tokenizer: Any, rows: float, dim: int) -> Step:
  """Returns the step of a residual auto-encoder on a batch of items."""
  widths = (dim, *tokenizer.hidden, tokenizer.latent_dim)
  forward = layers(rows, *widths) + layers(rows, *widths[::-1])
  forward += nearest(rows, code_sizes(tokenizer), tokenizer.latent_dim)
  return step(forward, 2 * sum(a * b for a, b in zip(widths, widths[1:])))


def code_sizes(tokenizer: Any) -> tuple[int, ...]:
  """Returns K_1, ..., K_L of `config.tokenizer`."""
  size = tokenizer.codebook_size
  return (size,) * tokenizer.num_levels if isinstance(size, int) else tuple(
      size)


def nearest(rows: float, sizes: Sequence[int], dim: int) -> Work:
  """Returns the work of finding the nearest codeword of each level."""
  return Work(2 * rows * sum(sizes) * dim,
              rows * (4 * sum(sizes) + 4 * len(sizes) * dim))


def kmeans(rows: float, sizes: Sequence[int], dim: int, num_steps: int) -> Work:
  """Returns the work of fitting codebooks level by level, on the host."""
  rounds = nearest(rows, sizes, dim) * num_steps + Work(
      0, 3 * num_steps * len(sizes) * rows * dim)
  start = sum(size * min(_START_ROWS * size, rows) for size in sizes)
  return rounds + Work(2 * start * dim, 3 * start * dim)


@dataclasses.dataclass(frozen=True)
class Tower:
  """The ranking tower on one data set.

  model: `config.model`.
  data: the data set's.
  num_cross: X.
  known: F, what is known of items.
  matches: M, counts of what was seen, by levels and actions.
  """
  model: Any
  data: types.DataSpec
  num_cross: int
  known: int = 0
  matches: int = 0

  @property
  def params(self) -> int:
    """Its parameters: nearly all are rows of tables."""
    spec, model = self.data.items, self.model
    rows = spec.vocabulary + self.data.request.vocabulary
    return rows * model.field_dim + (
        self.data.num_items * (model.id_dim + model.dim)
        + self._width * (model.experts * model.expert_width + model.hidden
                         + 2 * model.cross_layers * model.cross_rank))

  @property
  def _width(self) -> int:
    """Of what the mixer reads: h, the item, u2i, and what is known."""
    return 7 * self.model.dim + self.num_cross + self.known + self.matches

  def encode(self, items: float) -> Work:
    """Returns the work of encoding items; the catalog, where it is smaller."""
    model, spec = self.model, self.data.items
    rows = min(items, self.data.num_items)
    width = _encoded(spec, model) + model.id_dim
    return (layers(rows, spec.num_dims, model.dim) + layers(
        rows, width, model.hidden, model.dim) + layers(rows, width, model.dim)
            + Work(0, rows * 3 * spec.num_slots * model.field_dim)
            + Work(0, 2 * items * model.dim))

  def users(self, requests: float) -> Work:
    """Returns the work of reading requests and their histories."""
    model, spec = self.model, self.data.request
    places = requests * self.data.history_length
    return (Work(0, 8 * places * model.dim) + layers(
        requests, _encoded(spec, model), model.hidden, model.dim)
            + Work(0, requests * 3 * spec.num_slots * model.field_dim))

  def score(self, requests: float, queries: float) -> Work:
    """Returns the work of scoring `queries` for each of `requests`."""
    model, rows = self.model, requests * queries
    pairs = rows * self.data.history_length
    attend = Work(2 * pairs * model.dim * (model.attention + 1),
                  pairs * (12 * model.attention + 3)
                  + rows * model.dim * 2 * model.attention)
    seen = rows * self.data.seen_length * bool(self.matches)
    match = Work(2 * seen * self.matches, 3 * seen)
    width = self._width
    cross = layers(rows, width, model.cross_rank, width) * model.cross_layers
    experts = layers(rows, width, model.experts * model.expert_width
                     + model.experts + model.hidden)
    # Normalized, joined and read again.
    return attend + match + cross + experts + Work(0, 16 * rows * width)

  def guess(self, rows: float) -> Work:
    """Returns the work of guessing u2i of what is not an item yet."""
    return layers(
        rows, 7 * self.model.dim, self.model.hidden, self.num_cross)

  @property
  def compiling(self) -> float:
    """Seconds a stream of batches: each field is encoded by itself."""
    return 10 + .3 * len(self.data.items.fields + self.data.request.fields)

  def looked_up(self, candidates: float) -> Work:
    """Returns the host's work for u2i statistics of candidates."""
    return Work(0, _LOOK * candidates * self.num_cross)


def _encoded(spec: types.FeatureSpec, model: Any) -> int:
  """Returns the width of encoded features."""
  fields = sum(field.kind == 'category' for field in spec.fields)
  return (fields * model.field_dim + spec.num_values
          + model.dim * bool(spec.num_dims))


def searched(beam: int, sizes: Sequence[int], num_items: int) -> list[float]:
  """Returns how many children a beam search scores at each level.

  Of an even tree; what is padded comes on top.
  """
  out, nodes = [], 1.
  for level, size in enumerate(sizes):
    last = level + 1 == len(sizes)
    below = num_items if last else min(nodes * size, num_items)
    out.append(min(beam, nodes) * below / nodes)
    nodes = below
  return out


def ceil_div(a: float, b: float) -> int:
  """Returns a / b, rounded up."""
  return math.ceil(a / b)
