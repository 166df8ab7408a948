"""The bytes of single tokens. A token may be half a character, so it has no text of its own."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from transformers import PreTrainedTokenizerBase


class Vocabulary:
    """Bytes of token ids. Returns each id's bytes once, so a record of tokens stores them once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer = tokenizer
        decoder = str(getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", ""))
        self._is_byte_level = "ByteLevel" in decoder
        self._seen: set[int] = set()

    def new_pieces(self, completions: Iterable[Sequence[int]]) -> dict[int, bytes]:
        """id -> bytes of the ids that no earlier call returned."""
        fresh = {t for c in completions for t in c} - self._seen
        self._seen |= fresh
        return {t: self.piece(t) for t in sorted(fresh)}

    def piece(self, token_id: int) -> bytes:
        """The bytes that this token adds to a text: of a special token, its name."""
        name = self._tokenizer.convert_ids_to_tokens(token_id)
        if name is None:  # the embedding table often has more rows than the vocabulary
            return f"[{token_id}]".encode()
        assert isinstance(name, str)  # one id has one name
        if self._is_byte_level:
            # An added token need not be in the byte alphabet; its name is then plain text.
            is_bytes = all(c in _BYTES for c in name)
            return bytes(_BYTES[c] for c in name) if is_bytes else name.encode("utf-8", "replace")
        # SentencePiece names bytes outside of its vocabulary <0x0A>.
        if byte := re.fullmatch(r"<0x([0-9A-F]{2})>", name):
            return bytes.fromhex(byte[1])
        return name.replace("\u2581", " ").encode("utf-8", "replace")


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable character for every byte -> the byte.

    A printable byte is its own character; the other bytes count up from U+0100.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(others)}


_BYTES = _byte_alphabet()
