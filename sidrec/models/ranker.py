"""The ranking tower: item encoder, DIN, and a mixer shared by two paths.

DIG (arXiv 2605.14853): the ranking path sees the item and its u2i statistics,
the retrieval path sees a token prefix and a stand-in for them; both go through
one mixer, with a batch norm of its own for every input slot.
"""

from typing import Any, Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from sidrec import types
from sidrec.config import ranges
from sidrec.models import layers


# Slots of h, of u2i and of what is known, on the two paths. A user's h with
# prefixes of the whole catalog is spread otherwise than with what was exposed:
# with one norm for both the ranking path is read in units of the other, which
# has ten times the rows.
RANKING = ('user', 'u2i', 'known')
RETRIEVAL = ('found', 'u2t', 'below')


class ItemEncoder(nn.Module):
  """`e_v = Enc(x_s)`: item-static features (and the item's id) to a vector.

  spec: the item features.
  num_items: V.
  dim: output width D.
  id_dim: width of the id embedding; 0 leaves the id out.
  field_dim: width of one categorical field.
  init_scale: standard deviation of fresh rows of its tables.
  hidden: width of the hidden layer.
  """
  spec: types.FeatureSpec
  num_items: int
  dim: int
  id_dim: int
  field_dim: int
  init_scale: float
  hidden: int

  @nn.compact
  def __call__(
      self, features: types.FeatureTable, item: jax.Array) -> jax.Array:
    """Encodes items.

    Args:
      features: item-static features of all V items.
      item: [...] int32 item ids.

    Returns:
      [..., D] float32.
    """
    flat = item.reshape(-1)
    # Few items and many rows (histories): encode the catalog once and gather.
    whole = self.num_items <= flat.shape[0]
    rows = jnp.arange(self.num_items) if whole else flat
    table = features if whole else jax.tree.map(lambda x: x[flat], features)
    parts = [layers.FeatureEncoder(
        self.spec, self.field_dim, self.dim, self.init_scale,
        name='features')(table)]
    if self.id_dim:
      ids = self.param(
          'item_id', nn.initializers.normal(0.01),
          (self.num_items, self.id_dim))
      parts.append(ids[rows])
    x = layers.join(parts)
    if x is None:
      raise types.InputError(
          'config.model.id_dim=0, but items have no feature: nothing to encode')
    out = nn.Dense(self.dim, name='skip')(x)
    out = out + layers.MLP((self.hidden, self.dim), name='mlp')(x)
    if whole:
      out = out[flat]
    return out.reshape(*item.shape, self.dim)


class Ranker(nn.Module):
  """Scores candidates (ranking path) and token prefixes (retrieval path).

  data: static facts of the data set.
  dim, id_dim, field_dim, init_scale, hidden: of the item encoder.
  attention: hidden width of DIN's unit.
  cross_layers, cross_rank: of DCNv2.
  experts, expert_width: of the mixture.
  axis_name: data-parallel axis of the batch norms, or None.
  """
  data: types.DataSpec
  dim: int
  id_dim: int
  field_dim: int
  init_scale: float
  hidden: int
  attention: int
  cross_layers: int
  cross_rank: int
  experts: int
  expert_width: int
  axis_name: str | None = None

  def setup(self):
    """Builds the parts; slots are batch norms by name."""
    self.encoder = ItemEncoder(
        self.data.items, self.data.num_items, self.dim, self.id_dim,
        self.field_dim, self.init_scale, self.hidden)
    # The ranking loss overfits item ids within an epoch, retrieval needs them
    # for longer: it adds a table of its own to e_v.
    self.leaf = self.param(
        'leaf_id', nn.initializers.normal(0.01),
        (self.data.num_items, self.dim))
    self.request = layers.FeatureEncoder(
        self.data.request, self.field_dim, self.dim, self.init_scale)
    self.request_mlp = layers.MLP((self.hidden, self.dim))
    # One more: shown, and not known what for.
    self.action = nn.Embed(self.data.num_actions + 1, self.dim)
    self.gap = nn.Embed(_GAPS, self.dim)
    self.position = self.param(
        'position', nn.initializers.normal(0.02),
        (self.data.history_length, self.dim))
    self.din = layers.TargetAttention(self.attention)
    if self.num_cross:
      self.to_u2t = layers.MLP((self.hidden, self.num_cross))
    self.cross = layers.CrossNetwork(self.cross_layers, self.cross_rank)
    self.moe = layers.MixtureOfExperts(self.experts, self.expert_width)
    self.deep = layers.MLP((self.hidden, self.expert_width))
    self.head = nn.Dense(1)
    # u2i statistics come in counts and hours: everything downstream, and the
    # distance that MLP_u2t is trained on, sees them in standard units, by the
    # slot 'cross'.
    self.slots = {
        name: layers.BatchNorm(self.axis_name, affine=name != 'cross')
        for name in ('user', 'item', 'rsid', 'u2i', 'known',  # Ranking.
                     # Retrieval: h, prefix, stand-in, what is known below it.
                     'found', 'sid', 'u2t', 'below',
                     'cross')}

  @property
  def num_cross(self) -> int:
    """X, the number of u2i statistics."""
    return len(self.data.cross_names)

  def items(
      self, features: types.FeatureTable, item: jax.Array) -> jax.Array:
    """Returns e_v [..., D] of items [...]."""
    return self.encoder(features, item)

  def leaves(self, vectors: jax.Array, item: jax.Array) -> jax.Array:
    """Returns what the retrieval path reads of whole items: e_v + leaf id.

    Args:
      vectors: [..., D] e_v.
      item: [...] int32 their ids.

    Returns:
      [..., D].
    """
    return vectors + self.leaf[item]

  def users(
      self, batch: types.Batch, history: jax.Array, lagged: bool
  ) -> dict[str, jax.Array]:
    """Encodes what does not depend on the candidate.

    Args:
      batch: B requests.
      history: [B, T, D] e_v of the history's items.
      lagged: whether what users did since midnight is not known yet. Of one
        user's exposures those after a click would else be told apart from
        those before it, and a click comes before the exposures that see it.

    Returns:
      'keys' [B, T, D], 'mask' [B, T], 'request' [B, 2 D].
    """
    # How long ago, in powers of two: what was done in the same session says
    # other things than what was done last week.
    ago = jnp.maximum(batch.time[:, None] - batch.history.time, 0) + 1
    gap = jnp.minimum(jnp.log2(ago.astype(jnp.float32)), _GAPS - 1)
    action = batch.history.action
    if lagged and self.data.has_negatives:
      action = jnp.where(batch.history.time < batch.midnight[:, None], action,
                         self.data.num_actions)
    keys = (history + self.action(action) + self.position[None]
            + self.gap(gap.astype(jnp.int32)))
    mask = (batch.history.segment > 0).astype(jnp.float32)
    count = jnp.maximum(jnp.sum(mask, -1, keepdims=True), 1.)
    mean = jnp.sum(keys * mask[..., None], 1) / count
    request = self.request(batch.request)
    if request is None:  # A log without users' fields and context.
      request = jnp.zeros_like(mean)
    else:
      request = self.request_mlp(request)
    return {'keys': keys, 'mask': mask,
            'request': jnp.concatenate([request, mean], -1)}

  def attend(
      self, users: dict[str, jax.Array], query: jax.Array) -> jax.Array:
    """Returns h [B, C, 6 D] of queries [B, C, D].

    DIN of each query, the request, and the products of query and history:
    their sum is the similarity that a low-rank cross layer would have to find.
    The same of query and request: what users of a kind think of such items.
    """
    pooled = self.din(users['keys'], users['mask'], query)
    request = jnp.broadcast_to(
        users['request'][:, None], (*query.shape[:2], 2 * self.dim))
    mean = request[..., self.dim:]
    told = request[..., :self.dim]
    return layers.join(
        [pooled, pooled * query, mean * query, told * query, request])

  def u2t(self, h: jax.Array, prefix: jax.Array) -> jax.Array | None:
    """MLP_u2t: predicts u2i from h [..., 6 D] and e_sid [..., D].

    Returns:
      [..., X]; None where X = 0: there is nothing to predict.
    """
    if not self.num_cross:
      return None
    return self.to_u2t(jnp.concatenate([h, prefix], -1))

  def normalize(
      self, slot: str, x: jax.Array | None, train: bool) -> jax.Array | None:
    """Batch norm of a slot over all leading axes of x [..., D], or None."""
    if x is None:
      return None
    return self.slots[slot](layers.flat(x), train).reshape(x.shape)

  def mix(self, h: jax.Array, item: jax.Array, u2i: jax.Array | None,
          known: jax.Array | None) -> jax.Array:
    """The shared mixer: normalized slots [N, .] to logits [N].

    DCNv2's stacked structure with a mixture of experts and a deep network side
    by side on top of the cross layers.
    """
    x = self.cross(layers.join([h, item, u2i, known]))
    return self.head(
        jnp.concatenate([x, self.moe(x), self.deep(x)], -1))[:, 0]

  def logits(
      self, h: jax.Array, item: jax.Array, u2i: jax.Array | None,
      known: jax.Array | None, slots: tuple[str, str, str], train: bool
  ) -> jax.Array:
    """Normalizes what is not yet, and mixes; any leading axes.

    Args:
      h: [..., 6 D] of `attend`.
      item: [..., D], normalized already.
      u2i: [..., X] statistics in standard units (slot 'cross'), or what
        stands in for them; None where X = 0.
      slots: whose batch norms read `h` and `u2i`: RANKING or RETRIEVAL.
      train: whether those read the batch, or their running statistics.

    Returns:
      [...] float32.
    """
    out = self.mix(
        layers.flat(self.normalize(slots[0], h, train)), layers.flat(item),
        layers.flat(self.normalize(slots[1], u2i, train)),
        layers.flat(self.normalize(slots[2], known, train)))
    return out.reshape(h.shape[:-1])

  def vectors(
      self, catalog: types.Catalog, items: Sequence[jax.Array]
  ) -> list[jax.Array]:
    """Encodes several arrays of item ids in one pass of the encoder."""
    flat = jnp.concatenate([i.reshape(-1) for i in items])
    out, start = [], 0
    encoded = self.items(catalog.features, flat)
    for item in items:
      part = encoded[start:start + item.size]
      out.append(part.reshape(*item.shape, self.dim))
      start += item.size
    return out


_GAPS = 32  # Powers of two of int32.
# Parameters that are embedding tables (they get an optimizer group).
TABLES = ('embedding', 'item_id', 'position')
RANGES: ranges.Table = {
    'dim': ranges.WIDTH, 'id_dim': ranges.whole(0, 1 << 16),
    'field_dim': ranges.WIDTH, 'init_scale': ranges.WEIGHT,
    'hidden': ranges.WIDTH, 'attention': ranges.WIDTH,
    'cross_layers': ranges.whole(0, 1 << 10), 'cross_rank': ranges.WIDTH,
    'experts': ranges.DEPTH, 'expert_width': ranges.WIDTH}


def make(
    config: ml_collections.ConfigDict, data: types.DataSpec,
    axis_name: str | None = None) -> Ranker:
  """Builds the module from the `model` sub-tree of a configuration."""
  return Ranker(data=data, axis_name=axis_name, **config)


def init(
    key: jax.Array, model: Ranker, paths: Callable[[Ranker, types.Batch], Any]
) -> tuple[types.PyTree, types.PyTree]:
  """Returns fresh (params, batch_stats); consumes `key`.

  Args:
    key: PRNG key.
    model: to initialize.
    paths: runs what the method runs, on a batch of two rows, so that all
      parameters that it has are made, and no other.
  """
  batch = _example(model.data)
  variables = model.init(key, method=lambda own: paths(own, batch))
  return variables['params'], variables['batch_stats']


def _example(data: types.DataSpec) -> types.Batch:
  """Returns two requests with a candidate each."""
  length = data.history_length
  ints = lambda *shape: jnp.zeros(shape, jnp.int32)
  ones = lambda *shape: jnp.ones(shape, jnp.float32)
  # What has no column is left out: None.
  some = lambda fill, *shape: fill(*shape) if shape[-1] else None
  return types.Batch(
      row=ints(2), user=ints(2), item=ints(2, 1), label=ones(2, 1),
      mask=ones(2, 1),
      history=types.Sequence(
          row=ints(2), user=ints(2, length), item=ints(2, length),
          action=ints(2, length), time=ints(2, length),
          segment=ints(2, length) + 1, label=ones(2, length),
          target=ones(2, length)),
      request=types.FeatureTable(
          ids=some(ints, 2, data.request.num_slots),
          values=some(ones, 2, data.request.num_values),
          vectors=some(ones, 2, data.request.num_dims)),
      cross=some(ones, 2, 1, len(data.cross_names)), time=ints(2),
      midnight=ints(2), moment=ints(2),
      seen=None if not data.seen_length else types.Seen(
          item=ints(2, data.seen_length), action=ints(2, data.seen_length),
          mask=ones(2, data.seen_length)))
