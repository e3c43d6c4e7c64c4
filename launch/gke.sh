#!/usr/bin/env bash
# A job on TPU v5e slices of the GKE cluster that kubectl points to.
#
#   IMAGE=... launch/gke.sh run --config=... --workdir=gs://bucket/runs/NAME
#   launch/gke.sh logs         follows the first pod
#   launch/gke.sh delete       ends the job: SIGTERM, two minutes to save
#
# Settings are read from the environment; DRY_RUN=1 prints the job instead of sending it, which needs
# no cluster: DRY_RUN=1 launch/gke.sh run ... | kubectl create --dry-run=server -f - asks one.
set -euo pipefail
: "${JOB_NAME:=spectral-jax}" "${SERVICE_ACCOUNT:=default}"
: "${SLICES:=1}" "${TOPOLOGY:=4x4}" # chips of a slice along its axes; 2x4 and up
IFS=x read -r rows columns <<<"$TOPOLOGY"
HOSTS=$((rows * columns / 4))

action=${1:?expected run, logs or delete}
shift
case "$action" in
  run)
    : "${IMAGE:?expected the address of an image with this package: see launch/README.md}"
    for argument in "$@"; do
      if [[ "$argument" == *[\"\\\$]* ]]; then
        echo "argument $argument: quotes, backslashes and dollars cannot be passed on" >&2
        exit 2
      fi
    done
    ARGUMENTS="[$(printf '"%s", ' "$@" | sed 's/, $//')]"
    export JOB_NAME SERVICE_ACCOUNT SLICES TOPOLOGY HOSTS IMAGE ARGUMENTS
    job=$(envsubst <"$(dirname "$0")/gke_jobset.yaml")
    if [[ -n "${DRY_RUN:-}" ]]; then
      echo "$job"
    else
      kubectl apply -f - <<<"$job"
    fi
    ;;
  logs) ${DRY_RUN:+echo} kubectl logs -f "job/$JOB_NAME-slice-0" ;;
  delete) ${DRY_RUN:+echo} kubectl delete jobset "$JOB_NAME" ;;
  *) echo "unknown action '$action'; expected run, logs or delete" >&2; exit 2 ;;
esac
