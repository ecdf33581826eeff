"""Evaluation of a state on a split, and of a finished run."""

from sidrec.evaluate.evaluator import Evaluator
from sidrec.evaluate.files import read_json
from sidrec.evaluate.files import write as write_file
from sidrec.evaluate.loaded import Loaded
from sidrec.evaluate.loaded import load
from sidrec.evaluate.loaded import write_codes
from sidrec.evaluate.outcomes import Rows
from sidrec.evaluate.outcomes import write as write_rows
from sidrec.evaluate.protocol import describe_run
from sidrec.evaluate.run_identity import complete_identity
from sidrec.evaluate.run_identity import identity
from sidrec.evaluate.run_identity import movable
from sidrec.evaluate.selection import check as check_monitor
from sidrec.evaluate.selection import line
from sidrec.evaluate.selection import monitor
from sidrec.evaluate.settings import check

__all__ = ['Evaluator', 'Loaded', 'Rows', 'check', 'check_monitor',
           'complete_identity', 'describe_run', 'identity', 'line', 'load',
           'monitor', 'movable', 'read_json', 'write_codes', 'write_file',
           'write_rows']
