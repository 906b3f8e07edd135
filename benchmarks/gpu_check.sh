#!/usr/bin/env bash
# Check and measure mmlocal's Triton kernels on one GPU. Needs PyTorch and Triton, and no network.
#
#     benchmarks/gpu_check.sh --minutes 8 --out FOLDER
#     TRITON_INTERPRET=1 benchmarks/gpu_check.sh      # rehearses on a CPU, with tiny sizes
#
# PYTHON is the command of the interpreter. WHEELS is a folder of wheels, such as mmengine-lite,
# which the models need. docs/performance.md lists them.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}
path=$root
if [[ -n ${WHEELS:-} ]]; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    for wheel in "$WHEELS"/*.whl; do
        $python -m zipfile -e "$wheel" "$site"
    done
    path=$root:$site
fi
PYTHONPATH=$path${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 $python -m benchmarks.gpu.check "$@"
