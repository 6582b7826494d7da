from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import unicodedata

import pytest
from golden import GOLDEN, ROOT, foreign, needs_golden

from molmoact_data.errors import UserError
from molmoact_data.text import tokens
from molmoact_data.text.prompts import LONGEST_ANSWER, parse


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


@pytest.mark.parametrize(
    "spelled",
    [
        "<DEPTH_" + "9" * 5000 + ">",  # Python's int() raises beyond 4300 digits
        "<DEPTH_" + "9" * 30 + ">",
        "<DEPTH_007>",
        "<DEPTH_\u0663>",  # an Arabic digit, which \\d and int() accept
        "<DEPTH_-1>",
        "<DEPTH_ 1>",
    ],
)
def test_what_no_tokenizer_would_write_is_a_named_problem(spelled: str) -> None:
    text = f"<DEPTH_START><DEPTH_1>{spelled}<DEPTH_END>"
    parsed = parse(text, action_dim=3)
    assert parsed.depth_codes == [[1]]
    assert f"depth span holds other text: {spelled[:40]!r}" in parsed.problems


class CountedText(str):
    """A text that counts how many of its characters a search has passed."""

    __slots__ = ("visited",)

    def find(self, wanted: str, start: int = 0) -> int:  # type: ignore[override]
        found = str.find(self, wanted, start)
        self.visited = getattr(self, "visited", 0) + (len(self) if found < 0 else found) - start
        return found


@pytest.mark.parametrize(
    "piece",
    [
        tokens.DEPTH_START,
        tokens.DEPTH_END,
        tokens.DEPTH_START + tokens.DEPTH_END,
        tokens.DEPTH_START * 2 + tokens.DEPTH_END,
        "<DEPTH_",
        tokens.encode_depth([1, 2]),
    ],
)
def test_finding_depth_spans_visits_every_character_about_once(piece: str) -> None:
    visits = []
    for repeats in (1_000, 8_000):
        text = CountedText(piece * repeats)
        assert list(tokens.depth_places(text)) is not None
        visits.append(text.visited / len(text))
    assert max(visits) <= 2.0
    assert visits[1] <= visits[0] * 1.01  # no dearer per character in a text eight times as long


def test_a_text_longer_than_any_answer_is_not_read() -> None:
    parsed = parse("[" * (LONGEST_ANSWER + 1), action_dim=3)
    assert (parsed.depth_codes, parsed.traces, parsed.action_bins) == ([], [], [])
    assert parsed.problems == [
        "the text has 1000001 characters, no answer has more than 1000000: not read"
    ]


def test_half_a_character_is_an_unknown_token() -> None:
    """JSON can hold a lone surrogate, which has no UTF-8."""
    parsed = parse("[\ud800, \u00e9, x]", action_dim=3)
    assert parsed.action_bins == [[1, 1, 256]] or len(parsed.action_bins[0]) == 3
    assert any("unknown action token '\\ud800'" in problem for problem in parsed.problems)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 2 " + "9" * 5000, "5000 digits"),
        ("1 2 x", "no codes found"),
        ("\u0663 4", "no codes found"),
        ("", "no codes found"),
        ("<DEPTH_START><DEPTH_" + "9" * 30 + "><DEPTH_END>", "between the depth tokens stands"),
        (tokens.encode_depth([1]) + tokens.encode_depth([1, 2]), "differ in length"),
    ],
)
def test_codes_that_are_none_are_one_line(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        tokens.codes_in(text)


def test_codes_are_tokens_or_plain_integers() -> None:
    assert tokens.codes_in("see " + tokens.encode_depth([3, 5])) == [[3, 5]]
    assert tokens.codes_in("[3, 5,\n7]") == [[3, 5, 7]]


@needs_golden
def test_every_qwen_token_is_classified_as_its_id_says() -> None:
    vocabulary = json.loads((foreign("qwen2.5-tokenizer") / "vocab.json").read_text())
    for token, token_id in list(vocabulary.items())[::37]:
        expected = "action" if token_id >= 151_643 - 256 else "out_of_range"
        assert tokens.classify_action_token(token) == expected, token
    assert tokens.classify_action_token("ëĤĤ") == "unknown"


def test_tokens_need_no_numpy() -> None:
    code = "import sys, molmoact_data.text.tokens as t; t.action_token(5); assert 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
