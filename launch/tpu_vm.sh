#!/usr/bin/env bash
# One run on all hosts of a Cloud TPU slice. Not run on a TPU.
#
#   TPU=my-slice ZONE=us-central2-b launch/tpu_vm.sh --config configs/text_classification.py \
#       --workdir /shared/runs/mine --config.…
#
# Run it where gcloud is logged in. The arguments are those of `python -m jaxft.train`; --workdir must
# lie on storage that all hosts have mounted (Filestore, or a bucket by gcsfuse). Environment:
#   TPU, ZONE       the slice
#   DIRECTORY       of this project on each host (default: jaxft)
#   PYTHON          the interpreter there, with `pip install -e '.[tpu]'` (default: python3)
#
# The processes find each other by the slice's own metadata. To stop: TERM to the processes on any
# host; all save the same step. The same command continues.
set -eu
: "${TPU:?the name of the slice}" "${ZONE:?its zone}"
quoted() { printf "'%s' " "${@//\'/\'\\\'\'}"; } # read alike by every shell
exec gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="
  cd $(quoted "${DIRECTORY:-jaxft}") && exec $(quoted "${PYTHON:-python3}" -m jaxft.train --distributed "$@")"
