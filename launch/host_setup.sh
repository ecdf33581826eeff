#!/bin/bash
# Runs a module on one host of a pod: virtual environment if absent, then go.
#
#   bash launch/host_setup.sh sidrec.main --config=... --workdir=gs://...
#
# The same on one TPU machine as on sixty-four. EXTRA=cuda for GPUs: there JAX
# is not told to look for other hosts, see README.md for several.
set -euo pipefail
cd "$(dirname "$0")/.."
[[ $# -gt 0 ]] || { echo "usage: $0 MODULE [ARGUMENTS]" >&2; exit 2; }
EXTRA=${EXTRA:-tpu}
VENV=${VENV:-$HOME/sidrec_venv}
STAMP=$VENV/.installed
# Install again when the requirements changed or the last attempt was cut off.
if ! cmp -s setup.cfg "$STAMP"; then
  rm -f "$STAMP"
  PYTHON=${PYTHON:-}
  for name in python3.11 python3.12 python3.13 python3; do
    if [[ -z $PYTHON ]] && "$name" -c \
        'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      PYTHON=$name
    fi
  done
  [[ -n $PYTHON ]] || { echo "$0: no Python 3.11 or newer; set PYTHON" >&2; exit 2; }
  "$PYTHON" -m venv "$VENV"
  "$VENV/bin/pip" install --quiet --upgrade pip
  "$VENV/bin/pip" install --quiet -e ".[$EXTRA]"
  cp setup.cfg "$STAMP"
fi
if [[ $EXTRA == tpu ]]; then
  export SIDREC_DISTRIBUTED=${SIDREC_DISTRIBUTED:-1}  # JAX finds the others.
fi
exec "$VENV/bin/python" -m "$@"
