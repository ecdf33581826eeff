"""Evaluation of fake methods on a fake log, against plain loops."""

import io
import tracemalloc
import types as python_types

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from pyarrow import parquet as pq
import pytest

from sidrec import evaluate
from sidrec import metrics
from sidrec import parallel
from sidrec import types
from sidrec.evaluate import feed
from sidrec.evaluate import files
from sidrec.evaluate import lists
from sidrec.evaluate import protocol
from sidrec.evaluate import unified

V, N, C = 12, 21, 3  # Items, events of a split, candidates.


def _none(rows, width=0, dtype=np.float32):
  return np.zeros((rows, width), dtype)


class _Log:
  """A log whose `request.values` tell a fake method which event asks."""

  def __init__(self, seed=0):
    rng = np.random.default_rng(seed)
    self.name, self.protocol, self.truth = 'fake', 'by hand', None
    self.fingerprint = 'abc'
    self.spec = python_types.SimpleNamespace(num_items=V)
    self.catalog = types.Catalog(
        features=types.FeatureTable(),
        popularity=np.array([5, 3, 3, 3, 2, 2, 1, 1, 1, 1, 0, 0], np.float32))
    self.item_ids, self.user_ids = np.arange(V) + 100, np.array(
        [f'u{i}' for i in range(N)])
    self.event_user = rng.permutation(N).astype(np.int32)
    self.event_item = rng.integers(0, V, N).astype(np.int32)
    # Once each, and padding that would be item 0.
    self.seen_items = np.stack(
        [rng.permutation(V)[:4] for _ in range(N)]).astype(np.int32)
    self.seen_mask = (rng.random((N, 4)) < .6).astype(np.float32)
    self.seen_items[self.seen_mask == 0] = 0
    self.assembled = 0

  def examples(self, split, kind):
    del split, kind
    return np.arange(N)

  def seen(self, events):
    return self.seen_items[events], self.seen_mask[events]

  def ranking_candidates(self, split, events):
    del split
    items = (self.event_item[events][:, None] + np.arange(C)) % V
    return items.astype(np.int32), np.eye(C, dtype=np.float32)[
        np.zeros(len(events), int)]

  def assemble(self, events, items, label, row=None, mask=None):
    self.assembled += 1
    num = len(events)
    empty = _none(num, 0, np.int32)
    row = np.arange(num, dtype=np.int32) if row is None else row
    history = types.Sequence(
        row=row, user=empty, item=empty, action=empty, time=empty,
        segment=empty, label=_none(num), target=_none(num))
    return types.Batch(
        row=row, user=self.event_user[events], history=history, cross=None,
        request=types.FeatureTable(
            values=np.asarray(events, np.float32)[:, None]),
        item=items, label=label, mask=np.ones(items.shape, np.float32)
        if mask is None else mask)

  def with_candidates(self, batch, events, items, label=None, mask=None):
    del events, label
    return batch.replace(
        item=items, label=np.zeros(items.shape, np.float32), mask=mask)


def _table(seed=3, values=4):
  """Scores [N, V] of which many tie."""
  return np.random.default_rng(seed).integers(0, values, (N, V)).astype(
      np.float32)


def _method(table=None, rank=None, codes=None, width=None, probes=None):
  """A method that looks its scores up, for the event that asks."""
  def event(batch):
    return batch.request.values[:, 0].astype(jnp.int32)

  def retrieve(state, catalog, batch, tree, beam_size, bounds):
    del state, catalog, tree, bounds
    score, item = jax.lax.top_k(jnp.asarray(table)[event(batch)], beam_size)
    code = jnp.zeros((*item.shape, 0), jnp.int32) if codes is None else (
        jnp.asarray(codes)[item])
    return types.Beams(item=item.astype(jnp.int32), score=score, code=code,
                       mask=jnp.isfinite(score))

  def score(state, catalog, batch):
    del state, catalog
    return jnp.asarray(rank)[event(batch)[:, None], batch.item]

  return python_types.SimpleNamespace(
      sizes=() if codes is None else (V,) * codes.shape[1],
      score=None if rank is None else score, token_score=None,
      retrieve=None if table is None else retrieve, width=width,
      probes=probes or {})


def _config(**more):
  return ml_collections.ConfigDict(dict(
      dict(beam_size=5, batch_size=8, users_per_batch=8, remove_seen=False),
      **more))


def _evaluator(method, log=None, **more):
  mapped = parallel.make('vmap', num_shards=2)
  return evaluate.Evaluator(method, log or _Log(), mapped, _config(**more))


def _state(codes=None):
  return types.TrainState(
      params={}, variables={} if codes is None else {'codes': codes},
      opt_state={}, clock={}, seed=np.uint32(0))


def _expected(table, target, beam, gone=None, k=5):
  """Mean Recall@k and NDCG@k by lot: what ties is shuffled many times."""
  rng, total = np.random.default_rng(0), np.zeros(2)
  draws = 4000
  for row, own in enumerate(table):
    own = own.astype(float).copy()
    if gone is not None:
      own[gone[row]] = -np.inf
    noise = rng.random((draws, len(own)))
    place = ((own > own[target[row]]) | (
        (own == own[target[row]]) & (noise > noise[:, target[row]][:, None]))
             ).sum(1) + 1
    hit = (place <= min(k, beam)) & np.isfinite(own[target[row]])
    total += hit.mean(), (hit / np.log2(1 + place)).mean()
  return total / len(table)


@pytest.mark.parametrize('remove', [False, True])
def test_retrieval_is_by_lot_among_ties_with_and_without_seen_items(remove):
  log, table = _Log(), _table()
  # All that ties with the last is listed: here all there is.
  method = _method(table, width=lambda catalog, beam: V)
  values, rows = _evaluator(method, log, remove_seen=remove).run(
      _state(), 'test', keep_rows=True)
  gone = [log.seen_items[i][log.seen_mask[i] > 0] for i in range(N)]
  want = _expected(table, log.event_item, 5, gone if remove else None)
  np.testing.assert_allclose(
      [values['retrieval/recall@5'], values['retrieval/ndcg@5']], want,
      atol=.01)
  # One above the beam's width sees what the user would see.
  assert values['retrieval/recall@50'] == values['retrieval/recall@5']
  assert rows.exposures is None and rows.users['unified_place'] is None
  for row in range(N):
    order = [i for i in np.argsort(-table[row], kind='stable')
             if not remove or i not in gone[row]][:5]
    target = log.event_item[row]
    assert rows.users['place'][row] == (
        order.index(target) + 1 if target in order else 0)
  assert rows.users['event'].tolist() == list(range(N))


def test_lists_are_as_wide_as_removal_needs():
  log, asked = _Log(), []
  table = _table(values=1000)
  method = _method(table)
  find = method.retrieve
  method.retrieve = lambda *args: asked.append(args[4]) or find(*args)
  log.seen_mask[:] = 1.
  log.seen_mask[3:] = 0.
  _evaluator(method, log, beam_size=3, remove_seen=True).run(_state(), 'test')
  assert set(asked) == {8}  # 3 + 4 to a power of two.
  del asked[:]
  _evaluator(method, log, remove_seen=True).run(_state(), 'test')
  assert set(asked) == {V}  # 16 would be more than there are.
  del asked[:]
  beams = _evaluator(method, log, remove_seen=True).finder(_state())(
      log.assemble(np.arange(4), _none(4, 0, np.int32), _none(4)))
  assert set(asked) == {5} and beams.item.shape == (4, 5)


def test_a_code_that_a_full_list_cuts_counts_as_a_whole():
  log = _Log()
  codes = (np.arange(V) // 4)[:, None].astype(np.int32)
  table = np.random.default_rng(1).permuted(
      np.tile(np.arange(3), (N, 1)), axis=1)[:, codes[:, 0]].astype(np.float32)
  values = _evaluator(_method(table, codes=codes), log).run(
      _state(codes), 'test')
  want = _expected(table, log.event_item, 5)
  np.testing.assert_allclose(
      [values['retrieval/recall@5'], values['retrieval/ndcg@5']], want,
      atol=.01)
  assert values['tokenizer/collision_rate'] == 1.


def test_a_search_that_scores_items_has_nothing_appended():
  found = lists.groups(np.array([[0], [0], [0], [1], [2]]))
  beams = lambda item, score: types.Beams(
      item=np.array([item]), score=np.array([score]),
      code=np.zeros((1, len(item), 1), np.int32),
      mask=np.ones((1, len(item)), bool))
  by_code = lists.complete(beams([4, 1], [2., 1.]), found)
  assert by_code.item.tolist() == [[4, 1, 0, 2]] and by_code.mask.all()
  assert by_code.score.tolist() == [[2., 1., 1., 1.]]
  by_item = lists.complete(beams([4, 1, 2], [2., 1., .5]), found)
  assert by_item.item.tolist() == [[4, 1, 2]]
  whole = lists.complete(beams([0, 1, 2, 4], [2., 2., 2., 1.]), found)
  assert whole.item.shape == (1, 4)


def test_a_cut_list_has_no_holes():
  beams = types.Beams(
      item=np.array([[3, 4, 5], [6, 7, 8]]), score=np.zeros((2, 3)),
      code=np.zeros((2, 3, 0), int),
      mask=np.array([[True, False, True], [False, False, True]]))
  got = lists.cut(beams, 2)
  assert got.item[got.mask].tolist() == [3, 5, 8]
  assert got.mask.tolist() == [[True, True], [True, False]]
  got = lists.remove(got, np.array([[5], [9]]), np.array([[1.], [1.]]))
  assert got.mask.tolist() == [[True, False], [True, False]]


def test_both_paths_and_their_rows(tmp_path):
  log, table, rank = _Log(), _table(values=1000), _table(seed=5)
  values, rows = _evaluator(_method(table, rank), log).run(
      _state(), 'valid', keep_rows=True, alpha=.5)
  assert values['unified/alpha'] == .5
  items, label = log.ranking_candidates('valid', np.arange(N))
  score = rank[np.arange(N)[:, None], items]
  assert values['ranking/auc'] == metrics.auc(label.ravel(), score.ravel())
  np.testing.assert_array_equal(rows.exposures['score'], score.ravel())
  np.testing.assert_array_equal(rows.exposures['label'], label.ravel())
  listed = np.argsort(-table, 1, kind='stable')[:, :5]
  credit = []
  for row in range(N):
    own = table[row][listed[row]] + np.float32(.5) * rank[row][listed[row]]
    again = listed[row][np.argsort(-own, kind='stable')].tolist()
    target = log.event_item[row]
    inside = target in again
    assert rows.users['unified_place'][row] == (
        again.index(target) + 1 if inside else 0)
    credit.append(float(inside))
  assert values['unified/recall@5'] == pytest.approx(np.mean(credit))
  evaluate.write_rows(str(tmp_path), log, {
      0: {'valid': rows, 'test': rows}, 1: {'valid': rows}})
  users = pq.read_table(tmp_path / 'users.parquet').to_pydict()
  assert list(users) == [
      'split', 'seed', 'user_id', 'item_id', 'place', 'unified_place']
  assert users['split'] == ['valid'] * N + ['test'] * N + ['valid'] * N
  assert users['seed'] == [0] * 2 * N + [1] * N
  assert users['user_id'] == [f'u{i}' for i in log.event_user] * 3
  assert users['item_id'] == (log.event_item + 100).tolist() * 3
  assert users['place'] == rows.users['place'].tolist() * 3
  exposures = pq.read_table(tmp_path / 'exposures.parquet').to_pydict()
  assert list(exposures) == ['split', 'seed', 'row', 'label', 'score']
  assert exposures['row'] == list(range(N * C)) * 3


def test_alpha_is_the_best_of_validation_and_never_a_loss():
  log, table, rank = _Log(), _table(), _table(seed=5)
  evaluator = _evaluator(_method(table, rank), log)
  every = [evaluator.run(_state(), 'valid', alpha=alpha)
           for alpha in unified.ALPHAS]
  for kind in ('recall', 'ndcg'):  # Alpha 0 is retrieval's own list.
    for k in (5, 10, 50):
      assert every[0][f'unified/{kind}@{k}'] == pytest.approx(
          every[0][f'retrieval/{kind}@{k}'])
  values = evaluator.run(_state(), 'valid')
  own = [x['unified/ndcg@10'] for x in every
         if x['unified/recall@10'] >= values['retrieval/recall@10']]
  assert values['unified/ndcg@10'] == pytest.approx(max(own))
  assert values['unified/recall@10'] >= values['retrieval/recall@10']
  best = unified.ALPHAS.index(values['unified/alpha'])
  assert every[best]['unified/ndcg@10'] == values['unified/ndcg@10']


def test_a_method_that_cannot_rank_has_no_unified_place(tmp_path):
  log = _Log()
  _, rows = _evaluator(_method(_table()), log).run(
      _state(), 'test', keep_rows=True)
  evaluate.write_rows(str(tmp_path), log, {0: {'test': rows}})
  table = pq.read_table(tmp_path / 'users.parquet')
  assert table['unified_place'].null_count == N
  assert str(table.schema.field('unified_place').type) == 'int32'
  assert not (tmp_path / 'exposures.parquet').exists()


def test_one_long_id_costs_no_room_for_all():
  ids = np.array([f'i{v}' for v in range(2_000)], object)
  ids[700] = 'x' * 6000
  codes = np.arange(4_000, dtype=np.int32).reshape(-1, 2)
  tracemalloc.start()
  content = files.npz(item_id=ids, codes=codes)
  assert tracemalloc.get_traced_memory()[1] < 2_000 * 6000 * 4 / 2
  tracemalloc.stop()
  assert len(content) < 2**21
  with np.load(io.BytesIO(content)) as file:
    assert file['item_id'].dtype == '<U6000'
    assert file['item_id'].tolist() == ids.tolist()
    np.testing.assert_array_equal(file['codes'], codes)
  for values in (np.arange(3, dtype=np.uint64), np.array([''], object)):
    with np.load(io.BytesIO(files.npz(x=values))) as file:
      assert file['x'].tolist() == values.tolist()


def test_batches_are_assembled_anew_each_time():
  log = _Log()
  evaluator = _evaluator(_method(_table(), _table()), log)
  evaluator.run(_state(), 'test')
  once = log.assembled
  assert once == 6  # Three batches of exposures, three of users.
  evaluator.run(_state(), 'test')
  assert log.assembled == 2 * once


def test_a_thread_works_ahead_and_its_errors_are_raised():
  made = []
  feeding = feed.ahead(lambda x: made.append(x) or x * x, range(50), depth=2)
  assert next(feeding) == 0
  feeding.close()
  assert len(made) <= 4
  assert list(feed.ahead(lambda x: x, range(5))) == list(range(5))
  with pytest.raises(ZeroDivisionError):
    list(feed.ahead(lambda x: 1 / x, [1, 0, 1]))


def test_a_probe_adds_up_over_the_targets():
  def probe(state, catalog, batch):
    del state, catalog
    mask = batch.mask[:, 0]
    return {'a/even': (jnp.sum(mask * (batch.item[:, 0] % 2 == 0)),
                       jnp.sum(mask)), 'a/none': (0., 0.)}
  log = _Log()
  got = _evaluator(_method(probes={'a': probe}), log).probe(
      _state(), 'a', 'valid')
  assert got == {'a/even': pytest.approx(np.mean(log.event_item % 2 == 0))}


def test_the_protocol_says_what_numbers_rest_on():
  config = ml_collections.ConfigDict(
      {'eval': _config(remove_seen=True), 'codes': {'collisions': 'suffix'}})
  codes = np.zeros((V, 1), np.int32)
  got = evaluate.describe_run(config, _Log(), _method(_table(), codes=codes))
  words = got['protocol'].split('; ')
  assert words[:2] == ['by hand', 'seen items removed']
  assert words[-1] == 'items of one code: suffix' and got['remove_seen']
  assert got['data'] == {'name': 'fake', 'fingerprint': 'abc'}
  assert set(got['versions']) == {
      'sidrec', 'jax', 'jaxlib', 'flax', 'numpy', 'python'}
  assert got['versions']['jax'] == jax.__version__
  config.eval.remove_seen = False
  got = evaluate.describe_run(config, _Log(), _method(_table()))
  assert 'seen items kept' in got['protocol'] and 'one code' not in (
      got['protocol'])


def test_without_git_the_version_stands_alone(monkeypatch):
  with_git = protocol.versions()['sidrec']
  monkeypatch.setattr(protocol, '_git', lambda *_: None)
  alone = protocol.versions()['sidrec']
  assert with_git.split('+')[0] == alone and '+' not in alone


@pytest.mark.parametrize('names, shown', [
    (['ranking/gauc', 'ranking/auc', 'retrieval/recall@50',
      'retrieval/recall@10', 'unified/recall@10', 'ranking/ece'],
     ['ranking/auc', 'ranking/gauc', 'retrieval/recall@10',
      'retrieval/recall@50']),
    (['ranking/ece', 'ranking/auc'], ['ranking/auc', 'ranking/ece']),
    (['retrieval/recall@50', 'retrieval/ndcg@10', 'retrieval/recall@5'],
     ['retrieval/recall@5', 'retrieval/ndcg@10']),
    (['famae/item'], ['famae/item'])])
def test_a_validation_is_one_line(names, shown):
  text = evaluate.line({name: .125 for name in names}, .5, True)
  head, *words = text.split('  ')
  assert head == 'monitor 0.5000 (best so far)' and '\n' not in text
  assert words == [f'{name} 0.1250' for name in shown]
  assert 'best' not in evaluate.line({'a': 1.}, .5, False)
