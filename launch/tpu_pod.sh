#!/bin/bash
# Runs one command on all workers of a TPU pod. Prints it first; RUN=1 does it.
#
#   TPU=my-pod ZONE=us-central2-b launch/tpu_pod.sh sidrec.main \
#     --config=experiments/dig.py --workdir=gs://my-bucket/dig
#
# Create:  gcloud compute tpus tpu-vm create $TPU --zone=$ZONE \
#            --accelerator-type=v4-32 --version=tpu-ubuntu2204-base
# Warm up: gcloud compute tpus tpu-vm ssh $TPU --zone=$ZONE --command=true
#          (makes the SSH keys; --worker=all fails in odd ways without them)
# Resume:  after a preemption run the very same command again.
set -euo pipefail
: "${TPU:?the name of the pod}" "${ZONE:?its zone}"
REPO=$(cd "$(dirname "$0")/.." && pwd)
HOME_DIR=${HOME_DIR:-sidrec_pod}  # On each worker, in the home folder.
[[ $# -gt 0 ]] || { echo "usage: $0 MODULE [ARGUMENTS]" >&2; exit 2; }
for argument in "$@"; do
  if [[ $argument == --workdir=* && $argument != --workdir=gs://* ]]; then
    echo "--workdir must be a bucket path (gs://...): all workers share it" >&2
    exit 2
  fi
done
ARCHIVE=$(mktemp -u -t sidrec.XXXXXX).tgz
REMOTE="mkdir -p $HOME_DIR && tar -xzf sidrec.tgz -C $HOME_DIR"
REMOTE+=" && cd $HOME_DIR && bash launch/host_setup.sh$(printf ' %q' "$@")"
run() {
  printf '%q ' "$@"; echo
  if [[ ${RUN:-0} == 1 ]]; then "$@"; fi
}
run tar -czf "$ARCHIVE" -C "$REPO" --exclude=.git .
run gcloud compute tpus tpu-vm scp "$ARCHIVE" "$TPU:sidrec.tgz" \
  --zone="$ZONE" --worker=all
run gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all \
  --command="$REMOTE"
[[ ${RUN:-0} == 1 ]] || echo '(dry run: set RUN=1 to run these lines)'
