"""DIG's serving paths: ranking by items, retrieval by tokens.

Running statistics, stored codes, no noise (arXiv 2605.14853, specification
section 6).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

from sidrec import decode
from sidrec import distill
from sidrec import trie
from sidrec import types
from sidrec.models import ranker
from sidrec.tokenizers import base as tokenizers_base


class Dig(NamedTuple):
  """What DIG's functions share.

  config: the whole configuration.
  data: static facts of the data set.
  tokenizer: the quantizer.
  num_steps, warmup, freeze: length of the run, the step at which the codes
    appear and the one after which they stay.
  """
  config: ml_collections.ConfigDict
  data: types.DataSpec
  tokenizer: tokenizers_base.Tokenizer
  num_steps: int
  warmup: int
  freeze: int


def item_slot(dig: Dig, model: ranker.Ranker, vectors: jax.Array,
              semantic: jax.Array, train: bool) -> jax.Array:
  """The ranking path's item slot [..., D] from e_v and e_sid [..., D]."""
  out = model.normalize('item', vectors, train)
  if dig.config.loss.rank_item == 'both':
    out = (out + model.normalize('rsid', semantic, train)) / jnp.sqrt(2.)
  return out


def matches(dig: Dig, sid: jax.Array, batch: types.Batch, codes: jax.Array
            ) -> jax.Array | None:
  """Matches [B, C, L, A] of prefixes [B, C, l] with the history, or None.

  Args:
    dig: the shared parts.
    sid: [V, L] stored codes.
    batch: B requests.
    codes: [B, C, l] int32.
  """
  if not dig.config.loss.match:
    return None
  action = jax.nn.one_hot(batch.history_action, dig.data.num_actions)
  weight = action * batch.history_mask[..., None]
  return distill.match_counts(sid[batch.history], weight, codes)


def flat_matches(found: jax.Array | None) -> jax.Array | None:
  """[B, C, L, A] -> [B, C, L * A]."""
  return None if found is None else found.reshape(*found.shape[:2], -1)


def serve(dig: Dig, state: types.TrainState, fn: Any) -> Any:
  """Applies fn(module) with the state's tower and running statistics."""
  model = ranker.make(dig.config.model, dig.data)
  return model.apply(
      {'params': state.params['tower'], 'batch_stats': state.batch_stats},
      method=fn)


def score(dig: Dig, state: types.TrainState, catalog: types.Catalog,
          batch: types.Batch) -> jax.Array:
  """Logits [B, C] of the ranking path, with the candidates' own u2i."""
  sid = dig.tokenizer.codes(state.codebook)
  codes = sid[batch.item]
  semantic = dig.tokenizer.prefix(state.params['tokenizer'], codes)

  def fn(model: ranker.Ranker) -> jax.Array:
    x, history = model.vectors(catalog, [batch.item, batch.history])
    h = model.attend(model.users(batch, history), x, flat_matches(
        matches(dig, sid, batch, codes)))
    return model.logits(
        h, item_slot(dig, model, x, semantic, False),
        model.normalize('cross', batch.cross, False), ranker.RANKING)
  return serve(dig, state, fn)


def _prefix_logits(dig: Dig, model: ranker.Ranker, e: jax.Array, users: Any,
                   match: jax.Array | None) -> jax.Array:
  """Level scores [B, C] of prefix embeddings [B, C, D]; u2i is unknown."""
  h = model.attend(users, e, flat_matches(match))
  u2i = model.u2t(h, e)
  if not dig.config.eval.use_u2t:
    u2i = jnp.zeros_like(u2i)  # Control arm: the mean, so nothing known.
  return model.logits(
      h, model.normalize('sid', e, False), u2i, ranker.RETRIEVAL)


def token_score(dig: Dig, state: types.TrainState, catalog: types.Catalog,
                batch: types.Batch) -> jax.Array:
  """Logits [B, C] of the retrieval path at the last level, without u2i."""
  sid = dig.tokenizer.codes(state.codebook)
  codes = sid[batch.item]

  def fn(model: ranker.Ranker) -> jax.Array:
    e, history = model.vectors(catalog, [batch.item, batch.history])
    if dig.config.loss.leaf == 'tokens':
      e = dig.tokenizer.prefix(state.params['tokenizer'], codes)
    else:
      e = model.leaves(e, batch.item)
      history = model.leaves(history, batch.history)
    return _prefix_logits(dig, model, e, model.users(batch, history),
                          matches(dig, sid, batch, codes))
  return serve(dig, state, fn)


def retrieve(dig: Dig, state: types.TrainState, catalog: types.Catalog,
             batch: types.Batch, t: types.Trie, beam_size: int,
             bounds: trie.Bounds) -> types.Beams:
  """Beam search over the trie, scored by the mixer (specification section 6).

  Args:
    dig: the shared parts.
    state: the state.
    catalog: item features.
    batch: B requests; candidates are not read.
    t: trie of the served codes.
    beam_size: W.
    bounds: `trie.bounds`, static.

  Returns:
    Beams [B, W], scores are logits of the last level.
  """
  num_levels = len(dig.tokenizer.codebook_sizes)
  item_leaf = dig.config.loss.leaf == 'item'
  sid = dig.tokenizer.codes(state.codebook)

  def fn(model: ranker.Ranker) -> types.Beams:
    history, = model.vectors(catalog, [batch.history])
    leaves = None
    if item_leaf:
      # The nodes of the last level are the items.
      leaves = model.leaves(model.items(catalog.features, t.items), t.items)
      history = model.leaves(history, batch.history)
    users = model.users(batch, history)

    def logits_fn(prefix: jax.Array, carry: Any):
      def score_fn(found: decode.Children) -> jax.Array:
        head = found.take(prefix)
        codes = jnp.concatenate([head, found.code[..., None]], -1)
        if item_leaf and codes.shape[-1] == num_levels:
          e = leaves[found.node]
        else:
          e = dig.tokenizer.prefix(state.params['tokenizer'], codes)
        return _prefix_logits(
            dig, model, e, users, matches(dig, sid, batch, codes))
      return score_fn, carry

    return decode.beam_search(
        logits_fn, t, beam_size=beam_size, bounds=bounds,
        batch_size=batch.user.shape[0], score=dig.config.eval.score,
        num_rungs=2)
  return serve(dig, state, fn)
