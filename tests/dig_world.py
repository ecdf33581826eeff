"""A DIG tokenizer of a small catalog, for its tests."""

import functools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from sidrec import tokenizers
from sidrec import types
from sidrec.tokenizers import base

V, D = 60, 6
SIZES = (5, 4, 6)
L = len(SIZES)
KEY, ITEMS = jax.random.key(7), jnp.arange(V)


@functools.lru_cache(None)  # So that jit's own caches are kept.
def make(num_items=V, **settings):
  """Makes the tokenizer, jitted."""
  config = ml_collections.ConfigDict({**dict(
      name='dig', num_levels=L, codebook_size=SIZES, assignment='gumbel_st',
      forward_code='mixed', tau=.5, usage_ratio=1.5, usage_momentum=.9,
      ema_decay=.8, commit_weight=.25, book_weight=1., slack=1.25, margin=.5,
      ste_recall=False, cut_path=False), **settings})
  spec = types.DataSpec(
      num_items=num_items, num_users=1, items=types.FeatureSpec(),
      request=types.FeatureSpec(), cross_names=(), num_actions=1,
      history_length=1)
  tokenizer = tokenizers.make(config, spec)
  return tokenizer._replace(
      quantize=jax.jit(tokenizer.quantize),
      read=jax.jit(tokenizer.read, static_argnames='live'),
      loss=jax.jit(tokenizer.loss),
      update=jax.jit(tokenizer.update, static_argnames='axis_name'))


def items(x):
  """Returns items with vectors x."""
  x = np.asarray(x)
  return base.Items(
      np.arange(len(x)), x, types.FeatureTable(), np.ones(len(x)))


def explore(sigma=.5, key=KEY, item=ITEMS):
  """Returns noise on the codes of the items."""
  return base.Explore(item, key, jnp.float32(sigma))


class World:
  """A tokenizer after the tree start."""

  def __init__(self, hot=False, **settings):
    self.tok = make(**settings)
    x = np.random.default_rng(0).normal(size=(V, D)).astype(np.float32)
    params, variables, self.sid = self.tok.start(0, {}, {}, items(x))
    # Semantic rows apart from the address rows, or mistakes would not show.
    rng = np.random.default_rng(1)
    params['semantic'] = tuple(
        book + .1 * rng.normal(size=book.shape).astype(np.float32)
        for book in params['semantic'])
    self.params, self.variables = jax.tree.map(
        jnp.asarray, (params, variables))
    if hot:
      self.variables['usage'] = jnp.ones(SIZES[0])
    self.x, self.stored = jnp.asarray(x), jnp.asarray(self.sid)

  def quantize(self, x=None, stored=True, **settings):
    return self.tok.quantize(
        self.params, self.variables, self.x if x is None else x,
        stored=self.stored if stored is True else stored, **settings)

  def read(self, path, **settings):
    return self.tok.read(
        self.params, self.variables, path, self.x, **settings)

  def loss(self, path, **settings):
    return self.tok.loss(
        self.params, self.variables, self.x, path, stored=self.stored,
        **settings)
