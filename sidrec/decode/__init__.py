"""Searches the trie of a catalog for the best items of each user.

    beams = decode.beam_search(logits_fn, t, beam_size=50, batch_size=32)

The model is injected: it sees the live prefixes of all users once a level and
answers with the scores of the whole codebook, or with a function that scores
children. Only nodes of the trie are ever scored or ranked, so no code without
an item can come out. Models without codes score vectors: `top_items`.
"""

from sidrec.decode.children import Children
from sidrec.decode.children import ScoreFn
from sidrec.decode.inner import top_items
from sidrec.decode.sampling import sample
from sidrec.decode.search import beam_search
from sidrec.decode.search import LogitsFn
from sidrec.decode.search import SCORES
from sidrec.decode.teacher import score_items
