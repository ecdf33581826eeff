"""Configuration: shared values, the words after the colon, and checks."""

from sidrec.config.checks import check
from sidrec.config.checks import check_part
from sidrec.config.checks import identity
from sidrec.config.experiments import arguments
from sidrec.config.experiments import find_experiment
from sidrec.config.experiments import load_experiment
from sidrec.config.experiments import load_reads
from sidrec.config.experiments import names
from sidrec.config.experiments import READS
from sidrec.config.values import base_config
from sidrec.config.values import FEW_USERS
from sidrec.config.values import GENERATORS
from sidrec.config.values import MAIN_STAGE
from sidrec.config.values import next_item_config
from sidrec.config.values import PLANTED
from sidrec.config.values import RANGES
from sidrec.config.values import RANKERS
from sidrec.config.values import stage
from sidrec.config.values import STAGE
from sidrec.config.values import steps
from sidrec.config.values import VECTORS
from sidrec.config.words import apply
from sidrec.config.words import data_root
from sidrec.config.words import data_sets
from sidrec.config.words import read_words
from sidrec.config.words import set_key
from sidrec.config.words import set_keys

__all__ = [
    'FEW_USERS', 'GENERATORS', 'MAIN_STAGE', 'PLANTED', 'RANGES', 'RANKERS',
    'READS', 'STAGE', 'VECTORS', 'apply', 'arguments', 'base_config', 'check',
    'check_part', 'data_root', 'data_sets', 'find_experiment', 'identity',
    'load_experiment', 'load_reads', 'names', 'next_item_config', 'read_words',
    'set_key', 'set_keys', 'stage', 'steps']
