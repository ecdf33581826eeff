"""Every method's config has the leaves that the method reads, and no other."""

import pytest

from sidrec import config as config_lib
from sidrec import train
from tests import config_reads
from tests import tiny_run

# Shared by all methods, so that one flag may go to every run of a comparison:
# a method that does not train, rank or retrieve leaves some of them alone.
SHARED = ('run.', 'eval.', 'checkpoint.', 'parallel.', 'data.')
# Leaves that a tiny run on planted data has no reason to read, and why.
ELSEWHERE = {
    'train.num_steps': 'of methods that train',
    'train.rank_negatives': 'of logs without negatives',
    'train.pair_rows': 'with train.pair_weight',
    'codes.suffix_size': 'with codes.collisions=suffix',
}
# The T5 compiles for minutes, and is the same whatever the tokenizer; so is
# what tokenizers share.
WRITING = [name for name in config_lib.names() if 'generator' in
           tiny_run.config(name)]
LONG = [('cost', 'decoder'), ('pq', 'decoder'), ('random_codes', 'decoder'),
        ('tiger', '')]
RUNS = [(name, 'decoder' if name in WRITING else '')
        for name in config_lib.names()] + [('tiger', '')]
RUNS = [pytest.param(run, marks=pytest.mark.slow) if run in LONG else run
        for run in RUNS]


@pytest.fixture(name='reads', scope='module', params=RUNS,
                ids=lambda run: '+'.join(filter(None, run)))
def _reads(request, tmp_path_factory):
  """Leaves of a method's config, and what a tiny run of it reads."""
  name, words = request.param
  more = {} if name == 'popularity' else {
      'train__num_steps': -1, 'train__length': '6 steps'}
  if name == 'dig':
    more |= {'eval__every': 0, 'eval__validations': 2, 'train__pair_weight': .1}
  config, log = config_reads.record(tiny_run.config(name, words, **more))
  train.train_and_evaluate(config, str(tmp_path_factory.mktemp('run')))
  return config_reads.leaves(config), log


def test_every_leaf_is_read(reads):
  own, log = reads
  unread = {key for key in own - log.leaves - set(ELSEWHERE)
            if not key.startswith(SHARED)}
  assert not unread


def test_no_leaf_is_read_that_is_not_there(reads):
  _, log = reads
  assert not log.missing


@pytest.mark.parametrize(
    'reads', [('dig', '')], indirect=True, ids=['dig'], scope='module')
def test_what_dig_shares_is_all_read(reads):
  # It trains, ranks and retrieves: nothing that all share is left over.
  own, log = reads
  assert own - log.leaves <= {'data.root', 'train.rank_negatives'}
