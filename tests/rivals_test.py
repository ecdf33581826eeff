"""Benchmarks beside PyTorch and Cornac, where these are installed."""

import importlib
import itertools
import json
import pathlib
import sys
import types

import numpy as np
import pytest

from sidrec import schedule
from sidrec import types as sidrec_types
from sidrec.methods import base
from tests import data_tables

BENCHMARKS = (pathlib.Path(__file__).resolve().parent.parent / 'experiments'
              / 'benchmarks')
_SIZES = dict(num_layers=2, dim=16, hidden=24, num_heads=3, head_dim=4)


@pytest.fixture(autouse=True)
def path(monkeypatch):
  """Makes the benchmark scripts importable, as running one of them does."""
  monkeypatch.syspath_prepend(str(BENCHMARKS))
  yield
  for name in [p.stem for p in BENCHMARKS.glob('*.py')]:
    sys.modules.pop(name, None)


def module(name):
  return importlib.import_module(name)


@pytest.mark.parametrize('kind,peak', [
    ('NVIDIA H100 80GB HBM3', 989e12), ('NVIDIA H100 PCIe', 756e12),
    ('TPU v5 lite', 197e12), ('TPU v4', 275e12), ('cpu', None)])
def test_peak_of_a_device(kind, peak):
  assert module('train').peak_flops(kind) == peak


def test_rounds_of_kmeans_are_counted():
  cases = module('train_cases')
  case = cases.rqkmeans(cases.Settings(
      kmeans_items=600, kmeans_dim=8, kmeans_steps=2))
  assert len(case.data['rounds']) == 3
  assert all(1 <= rounds <= 2 for rounds in case.data['rounds'])
  assert case.floor == 2 * 600 * 8 * 256 * (sum(case.data['rounds']) + 3)


def test_generators_are_compared_at_the_size_of_the_paper():
  cases = module('train_cases')
  t5, decoder = (cases._config(cases.Settings(), name).generator
                 for name in ('t5', 'decoder'))
  for key in ('dim', 'num_layers', 'num_heads', 'head_dim', 'hidden'):
    assert t5[key] == decoder[key]
  assert decoder.name == 'decoder' and decoder.hidden == 1024


def small(cases):
  return cases.Settings(
      items=300, dim=24, batch=4, history=3, rows=2, row_items=16, users=3,
      beam=5, model=_SIZES)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['rqvae', 't5', 'decoder'])
def test_the_steps_learn(name):
  case = module('train_cases').CASES[name](small(module('train_cases')))
  first = float(case.ours()['loss'])
  # The latents of the RQ-VAE spread before its codewords follow.
  assert [float(case.ours()['loss']) for _ in range(240)][-1] < .9 * first
  assert case.flops > (case.floor or 0) and case.num_params > 1000


@pytest.mark.slow
def test_what_is_decoded_is_in_the_catalog():
  case = module('train_cases').t5_decode(small(module('train_cases')))
  assert np.asarray(case.ours().mask).all()  # The case compares the codes.
  assert case.data['history'].shape == (3, 3, 4)


def test_the_main_program_makes_no_codes():
  steps = module('steps')
  train, section = schedule.Train, schedule.Section
  method = base.Method(init=None, sections=(
      section('tokenizer', (train('tokenizer', 900),)),
      section('main', (train('joint', 50), train('frozen', 10))),
      section('export', ())))
  assert steps.main_program(method) == 'joint'
  with pytest.raises(sidrec_types.InputError, match='no steps'):
    steps.main_program(base.Method(init=None))


@pytest.mark.slow
@pytest.mark.parametrize('name', ['rqvae', 't5', 'decoder'])
def test_modules_have_the_same_parameters_and_learn(name):
  torch = pytest.importorskip('torch')
  cases, twins = module('train_cases'), module('train_torch')
  case = cases.CASES[name](small(cases))
  config, batch = case.config, None
  if name == 'rqvae':
    t = config.tokenizer
    twin = twins.Rqvae(24, t.hidden, t.latent_dim, t.num_levels,
                       t.codebook_size)
    batch = (torch.tensor(case.data['vectors']),)
  else:
    twin = {'t5': twins.T5, 'decoder': twins.Decoder}[name](
        config.model, case.sizes)
    batch = tuple(torch.tensor(x).long() for x in (
        case.data['batches'][0].values()))
  assert sum(p.numel() for p in twin.parameters()) == case.num_params
  step = twins.step(twin, config.train, [batch], 'float32')
  first = step()
  assert [step() for _ in range(20)][-1] < first
  assert case.flops > 0


def test_command_without_a_rival(tmp_path, capsys, monkeypatch):
  train = module('train')
  monkeypatch.setattr(train, 'rival_module', lambda cores: None)
  output = tmp_path / 'out.json'
  assert not train.main([
      f'--output={output}', '--cases=rqkmeans', '--kmeans_items=600',
      '--kmeans_steps=1'])
  found = json.loads(output.read_text())
  [row] = found['rows']
  assert row['contestant'] == 'sidrec' and row['items_per_s'] > 0
  assert found['peak_flops'] > 0 and found['versions']['jax']
  assert 'rqkmeans' in capsys.readouterr().out


def test_training_ends_by_the_clock_in_the_best_state(monkeypatch):
  torch = pytest.importorskip('torch')
  pytest.importorskip('cornac')
  budget_lib = module('cornac_budget')
  ticks = itertools.count()  # A second a look at the clock.
  monkeypatch.setattr(budget_lib, 'time', types.SimpleNamespace(
      perf_counter=lambda: float(next(ticks))))
  linear = torch.nn.Linear(1, 1, bias=False)
  torch.nn.init.zeros_(linear.weight)
  model = types.SimpleNamespace(model=linear)

  def fit():
    optimizer = torch.optim.SGD(linear.parameters(), 1.)
    while True:
      optimizer.zero_grad()
      linear(torch.ones(1, 1)).sum().backward()
      optimizer.step()  # Each lowers the weight by 1.

  keeper = budget_lib.Keeper(
      model, lambda model: -abs(linear.weight.item() + 5), 60., 100,
      cosine=False)
  keeper.run(fit)
  assert keeper.steps > 8 and len(keeper.curve) > 8
  # It was best at -5: what came later does not count.
  assert linear.weight.item() == -5


def test_learning_rate_follows_the_clock(monkeypatch):
  torch = pytest.importorskip('torch')
  pytest.importorskip('cornac')
  budget_lib = module('cornac_budget')
  ticks = itertools.count()
  monkeypatch.setattr(budget_lib, 'time', types.SimpleNamespace(
      perf_counter=lambda: float(next(ticks))))
  linear = torch.nn.Linear(1, 1)
  optimizer = torch.optim.SGD(linear.parameters(), 2.)
  rates = []

  def fit():
    while True:
      optimizer.step()
      rates.append(optimizer.param_groups[0]['lr'])

  budget_lib.Keeper(types.SimpleNamespace(model=linear), lambda model: 0.,
                    400., 1, cosine=True).run(fit)
  assert 1.9 < max(rates) <= 2 and rates[-1] < .1
  top = rates.index(max(rates))
  assert sorted(rates[top:], reverse=True) == rates[top:]


@pytest.mark.slow
def test_cornac_models_on_a_small_log(tmp_path, capsys):
  pytest.importorskip('cornac')
  rng = np.random.default_rng(0)
  num_items, num_users, length = 300, 40, 6
  start = rng.integers(0, num_items, num_users)
  events = [(u, int(start[u] + t) % (num_items - 20), t)
            for t in range(length) for u in range(num_users)]
  data_tables.write(tmp_path, dict(
      events=dict(zip(('user_id', 'item_id', 'timestamp'), zip(*events))),
      items={'item_id': list(range(num_items)), 'brand': ['x'] * num_items},
      info=dict(
          name='line', time_unit='ms', label=None,
          split=dict(kind='leave_one_out'), columns=dict(
              items={'brand': {'role': 'item_static', 'type': 'category'}}))))
  np.save(tmp_path / 'item_embeddings.npy', rng.normal(
      size=(num_items, 8)).astype(np.float32))
  codes = rng.permutation(1 << 16)[:num_items]
  np.savez(
      tmp_path / 'codes.npz', item_id=np.arange(num_items), codes=np.stack(
          [codes // 256, codes % 256, codes % 7, codes % 5], 1))
  runs = tmp_path / 'runs' / 'own'
  runs.mkdir(parents=True)
  (runs / 'results.json').write_text(json.dumps(dict(
      method='own', wall_seconds=3., steps=5, metrics=dict(
          test={'retrieval/recall@10': dict(mean=.5)}))))
  output = tmp_path / 'out.json'
  assert not module('cornac_models').main([
      f'--data={tmp_path}', f'--output={output}', '--minutes=.3',
      '--users=8', '--valid_users=4', '--looks=2', '--beam=10',
      f'--letter_codes={tmp_path}/codes.npz', f'--runs={tmp_path}/runs'])
  rows = json.loads(output.read_text())['rows']
  assert [row['method'] for row in rows] == [
      'cornac tiger', 'cornac letter', 'cornac sasrec', 'own']
  for row in rows[:3]:
    assert row['users'] == 8 and row['steps'] > 0 and row['curve']
    assert 0 <= row['metrics']['test']['retrieval/recall@10']['mean'] <= 1
  assert 'recall@10 0.5000' in capsys.readouterr().out
