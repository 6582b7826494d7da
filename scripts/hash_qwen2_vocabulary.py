"""Write molmoact_data/qwen2_known_tokens.bin from a Qwen2 or Qwen2.5 `vocab.json` (both have the same 151,643).

Usage: python scripts/hash_qwen2_vocabulary.py VOCAB.json molmoact_data/qwen2_known_tokens.bin
The file lets `molmoact parse` tell a known token from an unknown string without a tokenizer or a network.
"""

from __future__ import annotations

import hashlib
import json
import sys
from array import array
from pathlib import Path

FIRST_ACTION_TOKEN_ID = 151643 - 256


def main() -> None:
    """Hash every token below the action tokens, sort, write little-endian uint32."""
    vocabulary = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    tokens = [token for token, token_id in vocabulary.items() if token_id < FIRST_ACTION_TOKEN_ID]
    hashes = array(
        "I",
        sorted(
            int.from_bytes(hashlib.blake2b(token.encode(), digest_size=4).digest(), "little")
            for token in tokens
        ),
    )
    if sys.byteorder == "big":
        hashes.byteswap()
    Path(sys.argv[2]).write_bytes(hashes.tobytes())


if __name__ == "__main__":
    main()
