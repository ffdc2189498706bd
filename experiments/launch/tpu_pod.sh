#!/usr/bin/env bash
# A TPU slice by queued resources, the same script on each of its hosts.
#
#     NAME=vrl ZONE=us-east5-a TYPE=v5p-16 BUCKET=gs://mine bash tpu_pod.sh
#
# Needs: gcloud, logged in to a project with quota; the bucket mounted on every host,
# which checkpoints and metrics go to. A v5p-16 is 8 chips on 2 hosts.
set -euo pipefail
: "${NAME:?a name for the slice}" "${ZONE:?a zone that has the chips}"
TYPE=${TYPE:-v5p-16}
VERSION=${VERSION:-v2-alpha-tpuv5}
BUCKET=${BUCKET:?a bucket for the run folder, gs://...}
MESH=${MESH:-data=2,fsdp=4}
SOURCE=${SOURCE:?where vrl_jax is cloned from, a git address}

gcloud compute tpus queued-resources create "$NAME" --node-id "$NAME" \
  --zone "$ZONE" --accelerator-type "$TYPE" --runtime-version "$VERSION"

until gcloud compute tpus queued-resources describe "$NAME" --zone "$ZONE" \
  --format 'value(state.state)' | grep -q ACTIVE; do
  sleep 30
done

# On every host: the code, the chips' jax, the bucket as a folder.
gcloud compute tpus tpu-vm ssh "$NAME" --zone "$ZONE" --worker=all --command "
  set -e
  git clone --depth 1 '$SOURCE' vrl_jax
  python3 -m venv .venv
  .venv/bin/pip install --quiet 'jax[tpu]' ./vrl_jax
  mkdir -p runs
  gcsfuse --implicit-dirs '${BUCKET#gs://}' runs
"

# All hosts start it, and meet by themselves. The same line again resumes.
gcloud compute tpus tpu-vm ssh "$NAME" --zone "$ZONE" --worker=all --command "
  cd vrl_jax
  VRL_JAX_PROCESSES=auto ../.venv/bin/python experiments/vppo_tiny_digits.py \
    --mesh $MESH --out ../runs/vppo --steps 60
"
