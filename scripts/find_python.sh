#!/usr/bin/env bash
# Print the interpreter that set-up takes: 3.12, else 3.13, else 3.11, from PATH, pyenv's versions and uv's own.
# $PYTHON, if set, is the only candidate.
set -euo pipefail
shopt -s nullglob

# A name proves nothing (pyenv's shims are named python3.12 and refuse): a candidate must run, as that version,
# and be able to make a virtual environment.
runs_as() { # CANDIDATE VERSION
    local found
    found=$("$1" -c 'import sys, venv, ensurepip; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || return 1
    [[ $found == "$2" ]]
}

candidates() { # VERSION
    local directory
    if [[ -n ${PYTHON:-} ]]; then
        echo "$PYTHON"
        return
    fi
    IFS=: read -ra directories <<<"$PATH"
    for directory in "${directories[@]}"; do
        printf '%s\n' "$directory/python$1" "$directory/python3" "$directory/python"
    done
    printf '%s\n' "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1".*/bin/python
    printf '%s\n' "${UV_PYTHON_INSTALL_DIR:-${XDG_DATA_HOME:-$HOME/.local/share}/uv/python}/cpython-$1".*/bin/python3
}

for version in 3.12 3.13 3.11; do
    while read -r candidate; do
        if command -v "$candidate" >/dev/null && runs_as "$candidate" "$version"; then
            command -v "$candidate"
            exit 0
        fi
    done < <(candidates "$version")
done
if [[ -n ${PYTHON:-} ]]; then
    echo "PYTHON=$PYTHON is no Python 3.11 to 3.13 with venv and ensurepip; unset it to have one looked for" >&2
else
    echo "no Python 3.11 to 3.13 on PATH, under pyenv or under uv; install one (uv python install 3.12)" >&2
fi
exit 1
