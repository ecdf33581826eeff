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
#
# What git tracks is sent, as it stands in the folder, changes too; no more.
set -euo pipefail
refuse() { echo "$0: $1" >&2; exit 2; }
[[ $# -gt 0 ]] || refuse "say what to run: $0 MODULE [ARGUMENTS]"
[[ -n ${TPU:-} ]] || refuse 'set TPU to the name of the pod'
[[ -n ${ZONE:-} ]] || refuse 'set ZONE to the zone of the pod'
REPO=$(cd "$(dirname "$0")/.." && pwd)
HOME_DIR=${HOME_DIR:-sidrec_pod}  # On each worker, in the home folder.
previous=
for argument in "$@"; do
  [[ $previous != --workdir ]] || argument=--workdir=$argument
  if [[ $argument == --workdir=* && $argument != --workdir=gs://* ]]; then
    refuse '--workdir must be a bucket path (gs://...): all workers share it'
  fi
  previous=$argument
done
git -C "$REPO" ls-files --error-unmatch launch/tpu_pod.sh >/dev/null 2>&1 ||
  refuse "$REPO is no git checkout of sidrec: what git tracks is what is sent"
# The tracked files as a tree of their own; nothing in the checkout changes.
TREE=$(git -C "$REPO" stash create) ||
  refuse "git cannot take down the changes in $REPO: see git status"
OTHERS=$(git -C "$REPO" ls-files --others --exclude-standard | wc -l)
if (( OTHERS > 0 )); then
  echo "$0: $OTHERS files that git does not track stay here (git add them)" >&2
fi
FOLDER=$(mktemp -d -t sidrec.XXXXXX)
trap 'rm -rf "$FOLDER"' EXIT
ARCHIVE=$FOLDER/sidrec.tgz
REMOTE="mkdir -p $HOME_DIR && tar -xzf sidrec.tgz -C $HOME_DIR"
REMOTE+=" && cd $HOME_DIR && bash launch/host_setup.sh$(printf ' %q' "$@")"
run() {
  printf '%q ' "$@"; echo
  if [[ ${RUN:-0} == 1 ]]; then "$@"; fi
}
run git -C "$REPO" archive --format=tgz --output="$ARCHIVE" "${TREE:-HEAD}"
run gcloud compute tpus tpu-vm scp "$ARCHIVE" "$TPU:sidrec.tgz" \
  --zone="$ZONE" --worker=all
run gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all \
  --command="$REMOTE"
[[ ${RUN:-0} == 1 ]] || echo '(dry run: set RUN=1 to run these lines)'
