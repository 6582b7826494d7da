"""vLLM with our plug-in: greedy tokens are our own decoder's, masked and free requests in one batch.

vLLM's CPU attention knows no heads narrower than 32, so the checkpoint is a tiny one with wider heads.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from molmoact_data.text import prompts
from molmoact_train.families.molmoact.generate import decode_constrained, decode_free
from molmoact_train.families.molmoact.grammar import AnswerShape, build_grammar
from molmoact_train.families.molmoact.network import MolmoActForActionReasoning
from molmoact_train.families.molmoact.predictor import Predictor
from molmoact_train.families.molmoact.tiny import tiny_config, tiny_processor

ROOT = Path(__file__).resolve().parent.parent
VENV = Path(os.environ.get("MOLMOACT_VLLM_VENV", ROOT / ".venv-vllm"))
TCMALLOC = os.environ.get("MOLMOACT_TCMALLOC", "libtcmalloc_minimal.so.4")
FREE_TOKENS = 24
STATISTICS = {
    "tiny": {
        "action": {
            "q01": [-0.5] * 6 + [0.0],
            "q99": [0.5] * 6 + [1.0],
            "mask": [True] * 6 + [False],
        }
    }
}
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(
        not (VENV / "bin/python").is_file(), reason="vLLM is not installed (make vllm-env)"
    ),
]


def write_checkpoint(folder: Path, variant: str) -> Path:
    """As `write_tiny_checkpoint`, with heads of 32 and weights large enough that tokens depend on the pictures."""
    config = tiny_config(variant=variant, norm_stats=STATISTICS)
    config.llm_config.head_dim, config.llm_config.num_attention_heads = 32, 2
    config.llm_config.num_key_value_heads = 1 if variant == "D" else 2
    config.architectures = ["MolmoActForActionReasoning"]
    torch.manual_seed(0)
    model = MolmoActForActionReasoning(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6)
        if variant == "O":
            model.model.vision_backbone.pad_embed.normal_()
    model.save_pretrained(folder)
    tiny_processor(variant=variant).save_pretrained(folder)
    return folder


def ask_vllm(folder: Path, requests: list[dict], scratch: Path) -> list[dict]:
    (scratch / "requests.json").write_text(json.dumps(requests))
    environment = os.environ | {
        "LD_PRELOAD": f"{TCMALLOC}:{VENV.resolve()}/lib/libiomp5.so",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # one process: half the start-up
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [VENV / "bin/python", ROOT / "tests/ask_vllm.py", folder, scratch / "requests.json",
         scratch / "answers.json"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((scratch / "answers.json").read_text())


@pytest.mark.parametrize("variant", ["D"])
def test_vllm_writes_our_own_tokens_masked_and_free_in_one_batch(variant, tmp_path) -> None:
    folder = write_checkpoint(tmp_path / "model", variant)
    rng = np.random.default_rng(0)
    pictures = []
    for number in range(2):
        Image.fromarray(rng.integers(0, 256, (90, 120, 3), np.uint8)).save(
            tmp_path / f"{number}.png"
        )
        pictures.append(str(tmp_path / f"{number}.png"))
    ours = Predictor.from_pretrained(folder, device="cpu", dtype="float32")
    requests, expected = [], []
    for count in (1, 2):
        shape = AnswerShape(action_dim=7, num_images=count)
        grammar = build_grammar(shape, ours.processor.encode_many, ours.processor.eos_id)
        text = ours.processor.prompt(prompts.question("pick up the cube", "reasoning", count))
        inputs = ours.processor(text, [[Image.open(p) for p in pictures[:count]]])
        masked = decode_constrained(ours.model, inputs, grammar).token_ids
        free = decode_free(
            ours.model, inputs, max_new_tokens=FREE_TOKENS, eos_id=ours.processor.eos_id
        ).token_ids
        assert not grammar.accepts(free), "a free answer that is valid would prove nothing"
        asked = {"text": text, "pictures": pictures[:count]}
        requests += [
            asked | {"options": None, "max_tokens": grammar.max_tokens},
            asked | {"options": {"molmoact_free": 1}, "max_tokens": FREE_TOKENS},
        ]
        prompt = inputs["input_ids"][0].tolist()
        expected += [{"prompt": prompt, "answer": list(map(int, ids))} for ids in (masked, free)]
    found = ask_vllm(folder, requests, tmp_path)
    for number, (answer, wanted) in enumerate(zip(found, expected, strict=True)):
        assert answer == wanted, f"request {number}: {requests[number]['options']}"
