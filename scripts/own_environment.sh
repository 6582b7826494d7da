#!/usr/bin/env bash
# own_environment.sh VENV REQUIREMENTS NAME CHECK: VENV holds just what REQUIREMENTS pins, and the Python of CHECK runs in
# it; exit 75 with one line where the packages cannot be had.
set -euo pipefail
venv=$1 requirements=$2 name=$3 check=$4
python="$venv/bin/python"

if "$python" -c "$check" 2>/dev/null; then
    exit 0
fi
interpreter=$("$(dirname "$0")/find_python.sh")
"$interpreter" -m venv --clear "$venv"
if ! "$python" -m pip install --quiet --disable-pip-version-check --no-deps -r "$requirements"; then
    rm -rf "$venv"
    echo "$name is left out: its packages cannot be had here"
    exit 75
fi
