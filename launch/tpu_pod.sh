#!/usr/bin/env bash
# A TPU slice from nothing to a run and back.
#
#   launch/tpu_pod.sh create                       asks for the slice, and waits until it is there
#   launch/tpu_pod.sh install                      copies this folder to all workers and installs it
#   launch/tpu_pod.sh run --config=... --workdir=gs://...    starts training on all workers
#   launch/tpu_pod.sh logs                         follows worker 0
#   launch/tpu_pod.sh delete                       gives the slice back
#
# Settings are read from the environment; DRY_RUN=1 prints the commands instead of running them.
set -euo pipefail
: "${TPU_NAME:=spectral-jax}" "${TPU_ZONE:=us-central2-b}" "${TPU_TYPE:=v4-32}"
: "${TPU_RUNTIME:=tpu-ubuntu2204-base}"

run() { if [[ -n "${DRY_RUN:-}" ]]; then printf '%q ' "$@"; echo; else "$@"; fi; }
on() { run gcloud compute tpus tpu-vm ssh "$TPU_NAME" --zone="$TPU_ZONE" --worker="$1" --command="$2"; }

action=${1:?expected create, install, run, logs or delete}
shift
case "$action" in
  create)
    run gcloud compute tpus queued-resources create "$TPU_NAME" --node-id="$TPU_NAME" \
      --zone="$TPU_ZONE" --accelerator-type="$TPU_TYPE" --runtime-version="$TPU_RUNTIME"
    until [[ -n "${DRY_RUN:-}" ]] || gcloud compute tpus queued-resources describe "$TPU_NAME" \
      --zone="$TPU_ZONE" --format='value(state.state)' | grep -qx ACTIVE; do sleep 30; done
    ;;
  install)
    cd "$(dirname "$0")/.."
    archive=$(mktemp --suffix=.tgz)
    trap 'rm -f "$archive"' EXIT
    run git archive --format=tgz --output="$archive" HEAD
    run gcloud compute tpus tpu-vm scp "$archive" "$TPU_NAME:spectral_jax.tgz" \
      --zone="$TPU_ZONE" --worker=all
    # the image brings Python 3.10; uv takes a newer one that is there, or fetches it
    on all "mkdir -p spectral_jax && tar xzf spectral_jax.tgz -C spectral_jax && \
python3 -m pip install -q --user uv && python3 -m uv venv -q --clear --python '>=3.11,<3.14' env && \
python3 -m uv pip install -q --python env/bin/python -e './spectral_jax[tpu,demo,gcs]'"
    ;;
  run)
    on all "cd spectral_jax && nohup ../env/bin/python -m experiments.train $(printf '%q ' "$@")> ../train.log 2>&1 &"
    ;;
  logs) on 0 "tail -n 50 -f train.log" ;;
  delete)
    run gcloud compute tpus queued-resources delete "$TPU_NAME" --zone="$TPU_ZONE" --force --quiet
    ;;
  *) echo "unknown action '$action'; expected create, install, run, logs or delete" >&2; exit 2 ;;
esac
