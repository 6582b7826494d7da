"""Run by the test in LIBERO's own Python: recorded actions, step by step, through our environment. JSON on stdout.

python libero_replay.py DATA GOLDEN [EPISODE ...]
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from molmoact_robot.environments.libero import LiberoEnv, LiberoSettings


def main() -> None:
    data, golden = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
    wanted = set(map(int, sys.argv[3:])) or {row["rollout_episode"] for row in golden["rows"]}
    env = LiberoEnv(LiberoSettings(suite=golden["suite"], render="on-demand", max_steps=1000))
    found = []
    for row in golden["rows"]:
        if row["rollout_episode"] in wanted:
            with contextlib.redirect_stdout(sys.stderr):
                found.append(replay(env, data, golden["task_id"], row))
    sys.stdout.write(json.dumps({"versions": env.versions(), "rows": found}))
    env.close()


def replay(env: LiberoEnv, data: Path, task: int, row: dict) -> dict:
    episode = row["rollout_episode"]
    table = pq.read_table(data / f"data/chunk-000/episode_{episode:06d}.parquet")
    actions = np.array(table["action"].to_pylist(), np.float32)
    options = {"task": f"{env.settings.suite}-{task}", "trial": row["init_state"]}
    seen, _ = env.reset(seed=0, options=options)
    start, success, steps, grips = seen["agent_pos"].tolist(), False, 0, [env.grip_grid.tolist()]
    for action in actions:
        seen, _, success, _, _ = env.step(env.convention.to_environment(action))
        steps += 1
        grips.append(env.grip_grid.tolist())
        if success:
            break
    return {
        "rollout_episode": episode, "steps": steps, "success": bool(success), "instruction": env.task_description,
        "state_after_wait": start, "last_position": seen["agent_pos"][:3].tolist(), "grips": grips,
    }  # fmt: skip


if __name__ == "__main__":
    main()
