#!/usr/bin/env bash
# Builds a manylinux wheel from the source distribution in dist/, and writes it to wheelhouse/. One
# wheel serves every Python and every PyTorch, because the kernels know neither. By hand, in a clone:
#
#   python -m build --sdist
#   docker run --rm -v "$PWD:/src" -w /src quay.io/pypa/manylinux_2_28_x86_64 \
#       bash .github/scripts/build_wheel.sh
#
# Outside the container, auditwheel and patchelf have to be on the PATH, and PYTHON names a Python
# with pip. The oldest system that can use the wheel depends on the C library there; auditwheel names
# it.
set -euo pipefail
PYTHON=${PYTHON:-/opt/python/cp311-cp311/bin/python}
PLATFORM=${PLATFORM:-${AUDITWHEEL_PLAT:-auto}}

raw=$(mktemp -d)
"$PYTHON" -m pip wheel --no-deps -w "$raw" dist/mmlocal-*.tar.gz
if ls "$raw"/*-any.whl 2>/dev/null; then
    echo "the kernels were not compiled: there is no C++ compiler, or it failed" >&2
    exit 1
fi
auditwheel show "$raw"/*.whl
auditwheel repair --plat "$PLATFORM" -w wheelhouse "$raw"/*.whl
ls -l wheelhouse
