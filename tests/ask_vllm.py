"""Run by vLLM's own Python: the requests of a file, all in one batch -> what was written for each.

python ask_vllm.py FOLDER REQUESTS.json ANSWERS.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(folder: str, requests: str, answers: str) -> None:
    from PIL import Image
    from vllm import LLM, SamplingParams

    limits = {"max_model_len": 2048, "max_num_seqs": 4, "limit_mm_per_prompt": {"image": 2}}
    llm = LLM(folder, dtype="float32", enforce_eager=True, **limits)
    asked = json.loads(Path(requests).read_text())
    prompts = [
        {"prompt": a["text"], "multi_modal_data": {"image": [Image.open(p) for p in a["pictures"]]}}
        for a in asked
    ]
    params = [
        SamplingParams(temperature=0, max_tokens=a["max_tokens"], extra_args=a["options"])
        for a in asked
    ]
    found = [
        {"prompt": list(o.prompt_token_ids), "answer": list(o.outputs[0].token_ids)}
        for o in llm.generate(prompts, params)
    ]
    Path(answers).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
