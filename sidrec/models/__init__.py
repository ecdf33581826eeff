"""Networks: flax linen modules behind NamedTuples of pure functions.

Methods see the NamedTuples alone: a generator of codes (`generator`), a model
of item ids (`item_model`), a trunk of either (`trunks`).
"""

from sidrec.models.binding import bind
