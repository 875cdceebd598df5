"""Byte tokens: the bytes of UTF-8 text, and one mark that ends a document.

The vocabulary is the 256 values of a byte. No UTF-8 text contains 0xFF, so it is free to end each
document; whatever splits text into tokens differently, nats per *text* byte stay comparable.
"""

import hashlib

import numpy as np
import numpy.typing as npt

END = 0xFF  # ends each document


class ByteTokenizer:
    """UTF-8 bytes as tokens 0 to 254; token 255 ends a document."""

    name = "bytes"
    vocab_size = 256
    end = END

    @property
    def hash(self) -> str:
        """Hex digest of all that decides how text becomes tokens."""
        return hashlib.sha256(
            f"{self.name}: utf-8, {self.end:#x} ends a document".encode()
        ).hexdigest()

    def encode(self, text: str) -> npt.NDArray[np.uint8]:
        """Tokens [bytes] of a text, without an end mark.

        Raises UnicodeEncodeError for half a surrogate pair, which has no UTF-8.
        """
        return np.frombuffer(text.encode(), np.uint8).copy()

    def decode(self, tokens: npt.ArrayLike) -> str:
        """The text of tokens [n], without end marks; bytes of a cut character become U+FFFD."""
        array = np.asarray(tokens)
        return array[array != self.end].astype(np.uint8).tobytes().decode(errors="replace")

    def bytes_in(self, tokens: npt.ArrayLike) -> int:
        """How many bytes of text tokens of any shape stand for; an end mark stands for none."""
        return int(np.count_nonzero(np.asarray(tokens) != self.end))
