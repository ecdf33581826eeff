"""The prefix trie of a catalog's codes: flat arrays, made on the host.

    t = trie.build(codes)          # [V, L] integers
    fresh = trie.restrict(t, ids)  # only these items, without a rebuild
    trie.save(path, t)

`sidrec.decode` searches it.
"""

from sidrec.trie.construct import build
from sidrec.trie.construct import depth
from sidrec.trie.construct import nbytes
from sidrec.trie.edit import add
from sidrec.trie.edit import remove
from sidrec.trie.read import lookup
from sidrec.trie.read import restrict
from sidrec.trie.sizes import Bounds
from sidrec.trie.sizes import bounds
from sidrec.trie.sizes import max_items_per_code
from sidrec.trie.sizes import pad
from sidrec.trie.store import load
from sidrec.trie.store import save
