"""Tests beam search against enumeration and a plain search over tuples."""

import jax
import numpy as np
import pytest

import worlds
from sidrec import decode
from sidrec import trie


@pytest.fixture(autouse=True)
def _no_rank_promotion():
  with jax.numpy_rank_promotion('raise'):
    yield


@pytest.mark.parametrize('score', decode.SCORES)
@pytest.mark.parametrize('ties', [False, True])
@pytest.mark.parametrize('model', [worlds.dense, worlds.sparse])
def test_equals_enumeration_when_wide(ties, score, model):
  for seed in range(30):
    world = worlds.make(seed, ties)
    beams = world.search(
        worlds.MOST, sizes=worlds.SIZES, score=score, model=model)
    for user in range(worlds.BATCH):
      worlds.check(beams, user, world.enumerate(user, score))


@pytest.mark.parametrize('score', decode.SCORES)
@pytest.mark.parametrize('beam_size, top_k', [(1, 1), (3, 7), (6, 4)])
def test_equals_plain_search_when_narrow(beam_size, top_k, score):
  for seed in range(30):
    world = worlds.make(100 + seed, ties=seed % 2 == 0)
    beams = world.search(
        beam_size, sizes=worlds.SIZES, score=score, top_k=top_k)
    for user in range(worlds.BATCH):
      worlds.check(beams, user, world.plain(user, beam_size, score, top_k))


# Programs that many random catalogs share: sizes, items, mean number of
# children (it sets the layout) and the search.
_PROGRAMS = (
    ((2, 3, 2), 1, 1, dict(beam_size=1)),
    ((3, 3, 3, 3), 30, 1, dict(beam_size=7, num_rungs=4, top_k=10)),
    ((16, 16, 2), 300, 4, dict(beam_size=7, score='level')),
    ((256, 16, 3), 900, 2, dict(beam_size=50, num_rungs=2, top_k=60)),
    ((2048, 3), 5000, 8, dict(beam_size=20, score='level', top_k=200)),
    ((5, 2048, 2), 5000, 16, dict(beam_size=50)),
    ((16, 256), 700, 1, dict(beam_size=700, num_rungs=1)),
    ((9, 9, 9), 400, 2, dict(beam_size=20, per_prefix=(1, 3))),
    ((9, 9, 9), 400, 2, dict(beam_size=30, per_prefix=(2, 1), top_k=5)),
    ((4, 4, 4, 4), 200, 2, dict(beam_size=10, score='level',
                                per_prefix=(3, 2))),
)


def _compare_random(program, seeds):
  sizes, num_items, mean, kwargs = _PROGRAMS[program]
  beam = kwargs['beam_size']
  bounds = worlds.widest_bounds(sizes, num_items, beam, mean)
  for seed in seeds:
    world = worlds.make((program, seed), seed % 2 == 1, sizes, num_items,
                        share=[1., .5, .02][seed % 3])
    t, _ = trie.pad(world.trie, sizes, beam)
    beams = jax.device_get(worlds.search(
        t, world.tables, model=[worlds.dense, worlds.sparse][program % 2],
        bounds=bounds, **kwargs))
    oracle = {k: v for k, v in kwargs.items() if k != 'num_rungs'}
    for user in range(worlds.BATCH):
      worlds.check(beams, user, world.plain(user, **oracle))


@pytest.mark.parametrize('program', range(len(_PROGRAMS)))
def test_random_tries_equal_the_plain_search(program):
  _compare_random(program, range(10))


@pytest.mark.slow
@pytest.mark.parametrize('program', range(len(_PROGRAMS)))
def test_a_thousand_random_tries_equal_the_plain_search(program):
  _compare_random(program, range(1000, 1100))


@pytest.mark.parametrize('sizes', [(9,), (3, 1, 2, 2)])
def test_other_depths_without_padding(sizes):
  world = worlds.make(3, True, sizes)
  beams = world.search(100)
  for user in range(worlds.BATCH):
    worlds.check(beams, user, world.enumerate(user))
