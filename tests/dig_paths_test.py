"""DIG: which loss teaches what, and its beam against scoring every item."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import method_worlds

TERMS = ('rank', 'recall', 'code', 'recon', 'u2t')


def _dig(leaf, rank_item):
  """DIG in one of two ways to read the codes, frozen at half time."""
  return method_worlds.world('dig', loss__leaf=leaf, loss__rank_item=rank_item,
                loss__freeze=.5, loss__stop_h=rank_item == 'e_v')


@functools.cache
def _term_gradient(leaf, rank_item):
  """(term, step, label of the retrieval batch) -> gradients."""
  world = _dig(leaf, rank_item)

  def terms(program, params, label, state, batches):
    found = batches['retrieval'].replace(label=label)
    _, out = world.method.programs[program].loss_fn(
        params, state, world.catalog, {**batches, 'retrieval': found},
        key=jax.random.key(1), axis_name=None)
    return jnp.stack([
        *(out.metrics.get(f'loss/{name}', jnp.zeros([])) for name in TERMS),
        out.metrics['loss']])

  @functools.partial(jax.jit, static_argnames='program')
  def pull(params, label, state, batches, weight, program):
    _, back = jax.vjp(
        lambda *args: terms(program, *args, state, batches), params, label)
    return back(weight)

  def gradient(term, program='joint', batches=None):
    batches = batches or world.batches[program][0]
    weight = np.eye(len(TERMS) + 1, dtype=np.float32)[
        (*TERMS, 'loss').index(term)]
    clock = {**world.state.clock, 'joint': jnp.int32(1)}
    state = world.state.replace(clock=clock)
    return jax.device_get(pull(
        state.params, batches['retrieval'].label, state, batches, weight,
        program))
  return world, gradient


def _reached(params):
  """Whether a gradient reaches each level of both tables, and the encoder."""
  touched = lambda x: bool(np.abs(x).max() > 0)
  tables = params['tokenizer']
  return {
      'address': [touched(x) for x in tables['address']],
      'semantic': [touched(x) for x in tables['semantic']],
      'encoder': any(map(touched, jax.tree.leaves(
          params['tower']['encoder'])))}


def _all(levels, encoder=True):
  return {'address': levels, 'semantic': levels, 'encoder': encoder}


def test_recommendation_loss_reaches_codes_and_encoder():
  _, gradient = _term_gradient('code', 'e_v')
  assert _reached(gradient('recall')[0]) == _all([True] * 3)
  # The paths share no batch norm: nothing carries a gradient across.
  assert _reached(gradient('rank')[0]) == _all([False] * 3)
  _, gradient = _term_gradient('item', 'both')
  # The last level of the retrieval path is the item itself, not its tokens.
  assert _reached(gradient('recall')[0]) == _all([True, True, False])
  assert _reached(gradient('rank')[0]) == _all([True] * 3)


@pytest.mark.parametrize('leaf, rank_item', [
    ('code', 'e_v'), ('item', 'both')])
def test_ranking_path_reads_codes_only_if_told_to(leaf, rank_item):
  world = _dig(leaf, rank_item)
  grads = jax.jit(jax.grad(lambda params: jnp.sum(world.method.score(
      world.state.replace(params=params), world.catalog, world.request))))(
          world.state.params)
  for level in grads['tokenizer']['semantic']:
    assert (np.abs(level).max() > 0) == (rank_item == 'both')
  np.testing.assert_array_equal(grads['tokenizer']['address'], 0)


def test_retrieval_teaches_items_that_are_candidates_only():
  # Tokens are then the only way from the loss to such an item's vector.
  world, gradient = _term_gradient('code', 'e_v')
  batches = world.batches['joint'][0]
  seen = np.concatenate([
      np.ravel(batches['rank'].item), np.ravel(batches['rank'].history.item),
      np.ravel(batches['retrieval'].history.item)])
  only = np.setdiff1d(batches['retrieval'].item, seen)
  assert only.size
  rows = gradient('recall')[0]['tower']['encoder']['item_id']
  assert (np.abs(rows[only]).max(1) > 0).all()


def test_freezing_stops_the_addresses():
  _, gradient = _term_gradient('item', 'both')
  for term in ('recall', 'rank', 'loss'):
    reached = _reached(gradient(term, 'frozen')[0])
    assert reached['address'] == [False] * 3 and any(reached['semantic'])
  assert all(_reached(gradient('loss')[0])['address'])


def test_the_warmup_pays_for_the_ranker_alone():
  world = _dig('item', 'both')
  program = world.method.programs['warmup']
  assert set(program.streams) == {'rank'} and program.optimizers == ('tower',)
  grads = jax.jit(jax.grad(lambda params: program.loss_fn(
      params, world.state, world.catalog, world.batches['warmup'][0],
      key=jax.random.key(1), axis_name=None)[0]))(world.state.params)
  assert not any(np.abs(x).max() > 0 for x in jax.tree.leaves(
      grads['tokenizer']))
  for name in ('leaf_id', 'to_u2t'):
    assert not any(np.abs(x).max() > 0 for x in jax.tree.leaves(
        grads['tower'][name])), name


def test_u2t_teaches_its_network_alone():
  _, gradient = _term_gradient('code', 'e_v')
  params = gradient('u2t')[0]
  own = params['tower'].pop('to_u2t')
  assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(own))
  assert not any(np.abs(x).max() > 0 for x in jax.tree.leaves(params))


def test_masked_negatives_have_no_gradient():
  # d loss / d label = -(what the logits of kept places sum to) / count.
  world, gradient = _term_gradient('code', 'e_v')
  found = world.batches['joint'][0]['retrieval']
  item, mask = found.item.copy(), found.mask.copy()
  item[:, 1] = item[:, 0]  # Shares every prefix with the positive.
  mask[:, 2:] = 0.
  batches = {**world.batches['joint'][0],
             'retrieval': found.replace(item=item, mask=mask)}
  label = gradient('recall', batches=batches)[1]
  assert (label[:, 0] != 0).all()
  np.testing.assert_array_equal(label[:, 1:], 0)
  plain = gradient('recall')[1]
  assert (plain[:, 1:-1] != 0).all()
  # The last one comes from the history, where there is one.
  assert (plain[:, -1] != 0)[found.mask[:, -1] > 0].all()
  assert not plain[:, -1][found.mask[:, -1] == 0].any()


# --- Beam search against scoring everything ----------------------------------


@pytest.mark.parametrize('leaf, rank_item', [
    ('item', 'both'), ('code', 'e_v')])
def test_a_full_beam_equals_scoring_every_item(leaf, rank_item):
  world = _dig(leaf, rank_item)
  num = world.num_items
  every = np.broadcast_to(
      np.arange(num, dtype=np.int32), (method_worlds.ROWS, num))
  want = np.asarray(world.token_score(
      world.state, world.catalog, method_worlds.request(every)))
  beams = method_worlds.retrieve(world, world.request, beam_size=num)
  assert beams.mask.all()
  np.testing.assert_array_equal(np.sort(beams.item, 1), every)
  np.testing.assert_allclose(
      beams.score, np.take_along_axis(want, beams.item, 1), atol=2e-5)
  assert (np.diff(beams.score) <= 0).all()
