"""Baselines against the formulas as written, and the command end to end."""

import importlib
import json
import pathlib
import sys

import numpy as np
import pytest

from sidrec import config as config_lib
from sidrec import data

pytest.importorskip('lightgbm')
BENCHMARKS = (pathlib.Path(__file__).resolve().parent.parent / 'experiments'
              / 'benchmarks')


@pytest.fixture(autouse=True)
def path(monkeypatch):
  """Makes the benchmark scripts importable, as running one of them does."""
  monkeypatch.syspath_prepend(str(BENCHMARKS))
  yield
  for name in [p.stem for p in BENCHMARKS.glob('*.py')]:
    sys.modules.pop(name, None)


def module(name):
  return importlib.import_module(name)


def taken(num_users=40, num_items=9, seed=0):
  rng = np.random.default_rng(seed)
  users, items = np.nonzero(rng.random((num_users, num_items)) < .3)
  return module('item_models').interactions(
      np.append(users, users[0]), np.append(items, items[0]),  # A repeat.
      num_users, num_items)


@pytest.mark.parametrize('alpha,shrink', [(.5, 0.), (.75, 10.)])
def test_neighbors_against_double_loop(alpha, shrink):
  matrix = taken()
  got = module('item_models').neighbors(matrix, alpha, shrink).toarray()
  x = matrix.toarray()
  assert x.max() == 1
  for i in range(x.shape[1]):
    for j in range(x.shape[1]):
      both = np.sum((x[:, i] == 1) & (x[:, j] == 1))
      scale = x[:, i].sum() ** alpha * x[:, j].sum() ** (1 - alpha) + shrink
      want = 0 if i == j else both / scale
      np.testing.assert_allclose(got[i, j], want, rtol=1e-6)


def test_plain_neighbors_are_the_cosine_of_scikit_learn():
  pairwise = pytest.importorskip('sklearn.metrics.pairwise')
  matrix = taken(seed=1)
  want = pairwise.cosine_similarity(matrix.toarray().T)
  np.fill_diagonal(want, 0)
  got = module('item_models').neighbors(matrix, .5, 0.).toarray()
  np.testing.assert_allclose(got, want, atol=1e-6)


def test_ease_minimizes_its_objective_column_by_column():
  # min |x_j - X b|^2 + l2 |b|^2 with b_j = 0: ridge on the other columns.
  matrix, l2 = taken(seed=2), 3.
  got = module('item_models').ease(matrix, l2)
  x = matrix.toarray().astype(np.float64)
  for j in range(x.shape[1]):
    others = np.delete(np.arange(x.shape[1]), j)
    a = x[:, others]
    b = np.linalg.solve(a.T @ a + l2 * np.eye(len(others)), a.T @ x[:, j])
    np.testing.assert_allclose(got[others, j], b, atol=1e-5)
    assert got[j, j] == 0


def test_profiles_fade_and_never_exceed_one():
  history = np.array([[0, 3, 1, 3], [0, 0, 2, 1]])
  weight = np.array([[0, 1, .5, 1], [0, 0, 0, 0]])
  got = module('item_models').profiles(history, weight, 4, .5).toarray()
  np.testing.assert_allclose(got, [[0, .25, 0, 1], [0, 0, 0, 0]])


def test_the_best_items_against_stable_sort():
  scores = np.random.default_rng(3).integers(0, 4, (20, 11)).astype(float)
  order = np.argsort(-scores, axis=1, kind='stable')
  for k in (1, 5, 11, 30):
    got = module('item_models').best(scores, k)
    for row, values in enumerate(scores):
      # No list ends within a tie.
      num = np.sum(values >= np.sort(values)[-min(k, 11)])
      assert got.mask[row].tolist() == [
          place < num for place in range(got.mask.shape[1])]
      np.testing.assert_array_equal(got.item[row, :num], order[row, :num])
      np.testing.assert_array_equal(
          got.score[row, :num], values[order[row, :num]])


def lists(ranked):
  """Gives the items of all requests, in their order, without the padding."""
  return {row: item[mask] for part in ranked
          for row, item, mask in zip(part.row, part.item, part.mask)}


def test_recommend_against_dense_product():
  models, matrix = module('item_models'), taken(seed=4)
  weights = models.neighbors(matrix, .5, 0.)
  prior = np.arange(9.)
  history, mask = np.array([[1, 2], [0, 0]]), np.array([[1, 1], [0, 0]])
  profile = models.profiles(history, mask, 9)
  got = lists(models.recommend(profile, weights, prior, 9, rows=1))
  scores = profile.toarray() @ weights.toarray()
  for row, order in got.items():
    assert sorted(order) == list(range(9))
    assert np.all(np.diff(scores[row][order]) <= 1e-6)
  np.testing.assert_array_equal(got[1], np.arange(9)[::-1])  # The prior's.
  seen = lists(models.recommend(profile, weights, prior, 9, seen=profile))
  assert set(seen[0][-2:]) == {1, 2}


@pytest.mark.parametrize('half_life', [np.inf, 7.])
def test_popular_now_against_double_loop(half_life):
  rng = np.random.default_rng(5)
  time = np.sort(rng.integers(0, 50, 60))
  item = rng.integers(0, 8, 60)
  moments = rng.integers(0, 60, 12)
  got = lists(module('item_models').popular_now(
      item, time, moments, 8, 8, half_life, rows=5))
  assert len(got) == len(moments)
  for row, moment in enumerate(moments):
    order = got[row]
    scores = np.zeros(8)
    for v, s in zip(item, time):
      if s < moment:
        scores[v] += 2. ** ((s - moment) / half_life)
    assert sorted(order) == list(range(8))
    assert np.all(np.diff(scores[order]) <= 1e-9)


def write_log(directory, with_label):
  """Writes a small log where the category of an item is what users like.

  It goes on for weeks: what labels say is known the day after.
  """
  rng = np.random.default_rng(6)
  num_items, lines = 24, []
  for user in range(60):
    taste = user % 3
    for time in np.sort(rng.choice(10_000, 14, replace=False)):
      item = int(rng.integers(num_items))
      if not with_label and rng.random() < .8:
        item = item // 3 * 3 + taste
      label = int(rng.random() < (.8 if item % 3 == taste else .2))
      lines.append((int(time), user, item, label))
  lines.sort()
  seconds = lambda time: 1_600_000_000 + 360 * time
  rows = [f'{u},{i},{seconds(t)},{y}' for t, u, i, y in lines]
  (directory / 'events.csv').write_text(
      'user_id,item_id,timestamp,is_click\n' + '\n'.join(rows) + '\n')
  (directory / 'items.csv').write_text('item_id,category\n' + ''.join(
      f'{i},c{i % 3}\n' for i in range(num_items)))
  split = dict(kind='leave_one_out')
  if with_label:
    split = dict(kind='time', valid_from=seconds(7000),
                 test_from=seconds(8500))
  (directory / 'dataset.json').write_text(json.dumps(dict(
      name='small', time_unit='s', split=split,
      label='is_click' if with_label else None,
      columns=dict(
          events={} if with_label else {'is_click': {'role': 'never'}},
          items={'category': {'role': 'item_static', 'type': 'category'}},
          users={}),
      cross=['item_id', 'category'])))


@pytest.mark.parametrize('with_label', [True, False])
def test_command_writes_the_form_of_results(tmp_path, capsys, with_label):
  write_log(tmp_path, with_label)
  output = tmp_path / 'out.json'
  status = module('baselines').main([
      f'--data={tmp_path}', f'--output={output}', '--seeds=2',
      '--num_threads=1'])
  assert not status
  results = json.loads(output.read_text())['results']
  by_name = {result['method']: result for result in results}
  assert {'item click rate', 'gradient-boosted trees', 'popularity',
          'item-kNN', 'EASE'} <= set(by_name)
  for result in results:
    for split in ('valid', 'test'):
      for value in result['metrics'][split].values():
        assert len(value['per_seed']) == len(result['seeds'])
        np.testing.assert_allclose(value['mean'], np.mean(value['per_seed']))
  trees = by_name['gradient-boosted trees']
  assert trees['seeds'] == [0, 1]
  # Which category a user likes is in the cross statistics.
  assert trees['metrics']['test']['ranking/auc']['mean'] > .6
  rate = by_name['item click rate']['metrics']['test']['ranking/auc']['mean']
  assert trees['metrics']['test']['ranking/auc']['mean'] > rate
  printed = capsys.readouterr().out
  assert '## test' in printed and 'does not apply' in printed or with_label
  if not with_label:
    popularity, neighbors = (
        by_name[name]['metrics']['test']['retrieval/recall@10']['mean']
        for name in ('popularity', 'item-kNN'))
    assert neighbors > popularity


def load(directory, **settings):
  config = config_lib.base_config().data
  config.update(dict(settings, dir=str(directory)))
  return data.load(config, config.seed)


def test_a_tie_is_shared_out(tmp_path):
  write_log(tmp_path, with_label=False)
  dataset = load(tmp_path)
  requests = module('retrieval_baselines').Requests(
      dataset, dataset.examples('test', 'targets'))
  num = dataset.spec.num_items
  got = requests.score(module('item_models').popular(
      np.ones(num), len(requests.target), 5, rows=7))
  for k in (5, 10):
    np.testing.assert_allclose(got[f'retrieval/recall@{k}'], k / num)


def test_columns_without_cross_statistics(tmp_path):
  write_log(tmp_path, with_label=True)
  dataset = load(tmp_path, cross='none')
  events = dataset.examples('test', 'impressions')[:3]
  items = np.arange(6, dtype=np.int32).reshape(3, 2)
  layout = module('tree_features').Layout(dataset)
  got = layout.matrix(events, items)
  assert got.shape == (6, len(layout.names))
  assert not [name for name in layout.names if name.startswith('cross/')]
  place = layout.names.index('item/category/0')
  np.testing.assert_array_equal(
      got[:, place], dataset.catalog.features.ids[:6, 0])


def result(method, auc, recall=None, seeds=(0, 1), dataset='small'):
  values = {'ranking/auc': dict(mean=auc, std=.01, per_seed=[auc] * len(seeds))}
  if recall is not None:
    values['retrieval/recall@10'] = dict(mean=recall, std=0., per_seed=[recall])
  return dict(method=method, dataset=dataset, protocol='temporal', seeds=seeds,
              metrics=dict(test=values))


def test_compare_table_joins_workdirs_and_baselines(tmp_path, capsys):
  workdir = tmp_path / 'dig_run'
  workdir.mkdir()
  (workdir / 'results.json').write_text(json.dumps(result('dig', .75, .07)))
  file = tmp_path / 'baselines.json'
  file.write_text(json.dumps(dict(results=[result('trees', .74, seeds=[0])])))
  output = tmp_path / 'table.md'
  status = module('compare_table').main([
      '--results', str(workdir), '--baselines', str(file),
      '--output', str(output)])
  assert not status
  text = output.read_text()
  assert text == capsys.readouterr().out
  rows = [line for line in text.splitlines() if line.startswith('| ')]
  assert '0.7500 ± 0.0100 *' in rows[2] and 'dig' in rows[2]
  assert '0.7400' in rows[3] and '±' not in rows[3] and '*' not in rows[3]
  assert len({len(row) for row in rows}) == 1
  assert 'log loss' not in text  # Nobody has it.


@pytest.mark.parametrize('content,message', [
    (None, 'No such file'), ('{', 'no JSON'), ('{"metrics": {}}', 'missing'),
    ('[]', 'no results')])
def test_compare_table_names_a_bad_file(tmp_path, capsys, content, message):
  file = tmp_path / 'some.json'
  if content is not None:
    file.write_text(content)
  assert module('compare_table').main(['--results', str(file)]) == 2
  error = capsys.readouterr().err
  assert 'some.json' in error and message in error
  assert len(error.splitlines()) == 1


def test_compare_table_refuses_two_data_sets(tmp_path, capsys):
  for name in ('one', 'two'):
    (tmp_path / name).write_text(json.dumps(result('dig', .7, dataset=name)))
  assert module('compare_table').main(
      ['--results', str(tmp_path / 'one'), str(tmp_path / 'two')]) == 2
  assert 'one, two' in capsys.readouterr().err
