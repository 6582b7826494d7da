#!/usr/bin/env bash
# Build the wheel, install it with [read] alone into a new environment, and read an output with it there.
set -euo pipefail
: "${VENV:=.venv}"
python=$(cd "$VENV/bin" && pwd)/python
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$python" -m hatchling build -t wheel -d "$work/dist" >/dev/null
"$python" -m molmoact demo --output-path "$work/out" >/dev/null
"$python" -m venv "$work/venv"
wheel=$(echo "$work"/dist/molmoact-*.whl)
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check "${wheel}[read]" \
    --constraint <(grep -oE '^[A-Za-z0-9._-]+==[^ ;]+' requirements.lock)
cd "$work"
venv/bin/python - <<'EOF'
import importlib.util

absent = [name for name in ("torch", "apache_beam", "transformers") if importlib.util.find_spec(name) is None]
assert len(absent) == 3, f"[read] installed more than it needs: only {absent} are absent"
from molmoact import Output

output = Output.open("out")
rows = sum(1 for _ in output.rows(["trace"]))
assert rows == sum(shard.rows for shard in output.shards) > 0, rows
print(f"[read] alone: {rows} rows of the demo, without torch and without Beam")
EOF
venv/bin/molmoact stats out >/dev/null
