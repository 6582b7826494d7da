#!/usr/bin/env bash
# Make $VENV hold the locked dependencies and this package. uv where it can be had, pip otherwise.
set -euo pipefail
: "${PYTHON:=python3}" "${VENV:=.venv}"
"$PYTHON" - <<'EOF'
import sys
if not (3, 10) <= sys.version_info[:2] <= (3, 12):
    sys.exit(f"molmoact needs Python 3.10 to 3.12, found {sys.version.split()[0]}; set PYTHON=python3.11")
EOF
[ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
python="$VENV/bin/python"
pip=("$python" -m pip install --quiet --disable-pip-version-check)

install() {
    "$@" --require-hashes --no-deps -r requirements.lock
    "$@" --no-deps --no-build-isolation --editable .
}

if ! { "${pip[@]}" uv && install "$python" -m uv pip install --quiet --python "$python"; }; then
    echo "uv cannot be used here; installing with pip, which is slower" >&2
    install "${pip[@]}"
fi
