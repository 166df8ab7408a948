"""What single tokens say, as bytes: a token may be half a character, so it has no text of its own."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any


class Vocabulary:
    """Hands out the piece of each token id once: whoever keeps a record of tokens keeps it beside."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self._special = set(tokenizer.all_special_ids)
        decoder = str(getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", ""))
        self._is_byte_level = "ByteLevel" in decoder
        self._met: set[int] = set()

    def news(self, completions: Iterable[Sequence[int]]) -> dict[int, bytes]:
        """id -> its bytes, of those ids that were not handed out before."""
        fresh = {t for c in completions for t in c} - self._met
        self._met |= fresh
        return {t: self.piece(t) for t in sorted(fresh)}

    def piece(self, token_id: int) -> bytes:
        """The bytes that this token adds to a text; of a special token its name."""
        name = self._tokenizer.convert_ids_to_tokens(token_id)
        if name is None:  # the model's table is often longer than the vocabulary
            return f"[{token_id}]".encode()
        if token_id in self._special:
            return name.encode()
        if self._is_byte_level and all(
            c in _BYTES for c in name
        ):  # added tokens stand there as they are
            return bytes(_BYTES[c] for c in name)
        if byte := re.fullmatch(
            r"<0x([0-9A-F]{2})>", name
        ):  # SentencePiece's way with bytes outside of its vocabulary
            return bytes.fromhex(byte[1])
        return name.replace("\u2581", " ").encode("utf-8", "replace")


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in for every byte -> the byte: printable ones stand for themselves, the rest counts up from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(others)}


_BYTES = _byte_alphabet()
