from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import unicodedata

import pytest
from golden import GOLDEN, ROOT, needs_golden

from molmoact_data.text import tokens


def test_action_table_is_the_published_one() -> None:
    digest = hashlib.sha256("\n".join(tokens.action_tokens()).encode()).hexdigest()
    assert digest == "c454449a2220067f488b7ac4f9b1d1cb99ac2681054bff14b59a0067e5ee0cc8"
    assert len(set(tokens.action_tokens())) == 256


@pytest.mark.parametrize(
    ("action_bin", "token"), [(1, "â½Ĺ"), (128, "Ý¥"), (255, "ðŁİ¿"), (256, "ðŁİĳ")]
)
def test_action_tokens_of_the_specification(action_bin: int, token: str) -> None:
    assert tokens.action_token(action_bin) == token
    assert tokens.action_bin(token) == action_bin


@needs_golden
def test_action_table_equals_the_reference() -> None:
    bins = json.loads((GOLDEN / "preprocess" / "action_tokens.json").read_text())["bins"]
    assert {str(d): tokens.action_token(d) for d in range(1, 257)} == {
        d: entry["token"] for d, entry in bins.items()
    }


def test_action_tokens_survive_composition_but_not_compatibility_normalisation() -> None:
    assert all(unicodedata.normalize("NFC", t) == t for t in tokens.action_tokens())
    assert sum(unicodedata.normalize("NFKC", t) != t for t in tokens.action_tokens()) == 118


@pytest.mark.parametrize("action_bin", [0, 257, -1])
def test_a_bin_without_a_token_is_an_error(action_bin: int) -> None:
    with pytest.raises(ValueError, match=str(action_bin)):
        tokens.action_token(action_bin)


def test_depth_round_trip_and_order() -> None:
    assert (
        tokens.encode_depth([3, 127, 0]) == "<DEPTH_START><DEPTH_3><DEPTH_127><DEPTH_0><DEPTH_END>"
    )
    text = (
        f"a {tokens.encode_depth([3, 127, 0])} b {tokens.encode_depth([5])} <DEPTH_START><DEPTH_1>"
    )
    assert tokens.decode_depth(text) == [[3, 127, 0], [5]]
    assert tokens.depth_tokens()[127] == "<DEPTH_127>"
    assert len(tokens.depth_tokens()) == 128
    assert tokens.image_tokens() == (
        "<im_start>", "<im_end>", "<im_patch>", "<im_col>", "<|image|>", "<im_low>",
    )  # fmt: skip
    assert tokens.filler_token(7) == "|<EXTRA_TOKENS_7>|"


@needs_golden
def test_every_qwen_token_is_classified_as_its_id_says() -> None:
    vocabulary = json.loads((GOLDEN / "qwen2.5-tokenizer" / "vocab.json").read_text())
    for token, token_id in list(vocabulary.items())[::37]:
        expected = "action" if token_id >= tokens.QWEN2_VOCAB_SIZE - 256 else "out_of_range"
        assert tokens.classify_action_token(token) == expected, token
    assert tokens.classify_action_token("ëĤĤ") == "unknown"


def test_tokens_need_no_numpy() -> None:
    code = "import sys, molmoact_data.text.tokens as t; t.action_token(5); assert 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
