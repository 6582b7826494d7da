#!/usr/bin/env bash
# Make $VENV hold the locked dependencies and this package. uv where it can be had, pip otherwise.
set -euo pipefail
: "${VENV:=.venv}"
here=$(dirname "$0")
python="$VENV/bin/python"

if ! PYTHON="$python" "$here/find_python.sh" >/dev/null 2>&1; then
    interpreter=$("$here/find_python.sh")
    "$interpreter" -m venv --clear "$VENV"
    echo "set-up took $("$interpreter" --version), $interpreter, for $VENV" >&2
fi
pip=("$python" -m pip install --quiet --disable-pip-version-check)

install() {
    "$@" --require-hashes --no-deps -r requirements.lock
    "$@" --no-deps --no-build-isolation --editable .
}

if ! { "${pip[@]}" uv && install "$python" -m uv pip install --quiet --python "$python"; }; then
    echo "uv cannot be used here; installing with pip, which is slower" >&2
    install "${pip[@]}"
fi
