"""Whole runs of several phases: stopped at their borders, nothing changes."""

import json
import os
import signal

import numpy as np
import pytest

from sidrec import evaluate
from sidrec import train
from sidrec import types
from sidrec.data import pipeline
from sidrec.evaluate import code_report
from tests import tiny_run


@pytest.fixture(name='letter', scope='module')
def _letter(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('letter')
  train.train_and_evaluate(tiny_run.config('letter', 'decoder'), str(workdir))
  return workdir


def test_stops_at_borders_of_phases_change_nothing(
    letter, tmp_path, monkeypatch):
  whole = pipeline.Pipeline.iterate
  # Two steps of SASRec, then the codebooks' start; three of the tokenizer,
  # then the codes; then the generator.
  before = 0
  for done in (2, 4, 5):
    with monkeypatch.context() as patch:
      left = [done - before]
      def iterate(self, starts, num, left=left):
        for batch in whole(self, starts, num):
          left[0] -= 1
          if left[0] == 0:
            os.kill(os.getpid(), signal.SIGTERM)
          yield batch
      before = done
      patch.setattr(pipeline.Pipeline, 'iterate', iterate)
      with pytest.raises(train.Terminated, match=f'step {done}'):
        train.train_and_evaluate(tiny_run.config('letter', 'decoder'), str(tmp_path))
  train.train_and_evaluate(tiny_run.config('letter', 'decoder'), str(tmp_path))
  assert tiny_run.lines(tmp_path) == tiny_run.lines(letter)
  assert tiny_run.results(tmp_path) == tiny_run.results(letter)


def test_folders_are_told_apart():
  assert code_report.names(['a/tiger', 'b/letter']) == ['tiger', 'letter']
  assert code_report.names(['a/tiger', 'b/tiger/']) == ['a/tiger', 'b/tiger']
  with pytest.raises(types.InputError, match='twice'):
    code_report.names(['a/tiger', 'a/tiger'])


def test_the_codes_of_a_run_are_described(letter, tmp_path):
  run = evaluate.load(str(letter))
  found = code_report.write({'letter': run}, str(tmp_path))['letter']
  results = tiny_run.results(letter)['metrics']['test']
  for name, value in results.items():
    if name.startswith('tokenizer/'):
      assert np.isclose(found.codes[name], value['mean']), name
  assert {'tokenizer/near_prefix@1', 'tokenizer/taken_prefix@1',
          'tokenizer/purity@1', 'tokenizer/purity_chance@1',
          'tokenizer/entropy@2'} <= set(found.codes)
  assert set(found.codes) == set(found.chance)
  again = code_report.describe(run, previous=run.codes)
  assert again.codes['tokenizer/churn'] == 0
  written = json.loads((tmp_path / 'codes.json').read_text())['letter']
  assert written == found._asdict()
