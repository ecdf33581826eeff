"""One per-device step on all devices of all processes."""

from sidrec.parallel.devices import make
from sidrec.parallel.devices import Parallel
from sidrec.parallel.devices import WRAPPERS
from sidrec.parallel.processes import agree
from sidrec.parallel.startup import initialize
from sidrec.parallel.startup import leave
