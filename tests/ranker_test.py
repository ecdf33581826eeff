"""Checks the ranking tower where there are no statistics and no fields."""

import functools

import data_tables
import jax
from jax.extend import core as jax_core
import jax.numpy as jnp
import ml_collections
import numpy as np

from sidrec import data
from sidrec import types
from sidrec.models import layers
from sidrec.models import ranker

_SIZES = dict(dim=8, id_dim=4, field_dim=4, init_scale=.1, hidden=8,
              attention=4, cross_layers=1, cross_rank=2, experts=2,
              expert_width=4)


def _load(directory, bare):
  world = data_tables.small()
  if bare:
    world['info']['columns'], world['users'] = {}, None
    world['info']['cross'] = ['item_id']
  data_tables.write(directory, world)
  return data.load(data_tables.config(
      directory, cross='none' if bare else 'all'), 0)


def _init(model, dataset):
  return jax.jit(lambda key, catalog: ranker.init(
      key, model, lambda own, batch: _paths(own, catalog, batch, False)))(
          jax.random.key(0), dataset.catalog)


def _paths(model, catalog, batch, train):
  """Both paths of the tower, as methods run them."""
  x, history = model.vectors(catalog, [batch.item, batch.history.item])
  h = model.attend(model.users(batch, history, False), x)
  leaves, flat = model.leaves(x, batch.item), layers.flat
  cross = model.normalize('cross', flat(batch.cross), train)
  ranked = model.mix(
      model.normalize('user', flat(h), train),
      model.normalize('item', flat(x), train),
      model.normalize('u2i', cross, train), None)
  found = model.mix(
      model.normalize('found', flat(h), train),
      model.normalize('sid', flat(leaves), train),
      model.normalize('u2t', flat(model.u2t(h, leaves)), train), None)
  return ranked, found


def test_nothing_of_no_width_is_computed(tmp_path):
  dataset = _load(tmp_path, True)
  model = ranker.make(ml_collections.ConfigDict(_SIZES), dataset.spec)
  params, stats = _init(model, dataset)
  assert 'to_u2t' not in params
  events = np.arange(12)
  batch = dataset.assemble(
      events, dataset.event_item[:, None], dataset.event_label[:, None])

  def run(params, catalog, batch):
    return model.apply(
        {'params': params, 'batch_stats': stats}, method=functools.partial(
            _paths, catalog=catalog, batch=batch, train=True),
        mutable=['batch_stats'])

  jaxpr = jax.make_jaxpr(run)(params, dataset.catalog, batch)
  shapes = [var.aval.shape for equation in _equations(jaxpr.jaxpr)
            for var in (*equation.invars, *equation.outvars)]
  assert shapes and not any(0 in shape for shape in shapes)
  (ranked, found), _ = jax.jit(run)(params, dataset.catalog, batch)
  assert ranked.shape == found.shape == (12,)
  assert jnp.isfinite(ranked).all() and jnp.isfinite(found).all()


def _equations(jaxpr):
  for equation in jaxpr.eqns:
    yield equation
    for inner in jax_core.jaxprs_in_params(equation.params):
      yield from _equations(inner)


def test_padding_of_a_history_is_not_read(tmp_path):
  dataset = _load(tmp_path, False)
  model = ranker.make(ml_collections.ConfigDict(_SIZES), dataset.spec)
  params, stats = _init(model, dataset)
  batch = dataset.assemble(
      np.arange(12), dataset.event_item[:, None],
      dataset.event_label[:, None])
  assert params['to_u2t']
  score = jax.jit(lambda batch: model.apply(
      {'params': params, 'batch_stats': stats}, method=functools.partial(
          _paths, catalog=dataset.catalog, batch=batch, train=False)))
  history = batch.history
  nothing = history.segment == 0
  other = history.replace(item=np.where(nothing, 3, history.item),
                          action=np.where(nothing, 1, history.action))
  for one, two in zip(score(batch), score(batch.replace(history=other))):
    np.testing.assert_array_equal(one, two)
  swapped = history.replace(action=1 - np.minimum(history.action, 1))
  assert not np.allclose(
      score(batch)[0], score(batch.replace(history=swapped))[0])


def test_encoder_of_no_field_says_nothing():
  encoder = layers.FeatureEncoder(types.FeatureSpec(), 4, 4, .1)
  out, variables = encoder.init_with_output(
      jax.random.key(0), types.FeatureTable())
  assert out is None and not variables
  assert layers.flat(None) is None and layers.join([None, None]) is None
