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
if "$python" -m pip install --quiet --disable-pip-version-check uv; then
    install=("$python" -m uv pip install --quiet --python "$python")
else
    echo "uv cannot be had; using pip, which is slower" >&2
    install=("$python" -m pip install --quiet --disable-pip-version-check)
fi
"${install[@]}" --require-hashes --no-deps -r requirements.lock
"${install[@]}" --no-deps --no-build-isolation --editable .
