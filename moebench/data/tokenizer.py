"""Tokenizers: bytes, or byte-level subwords of the `tokenizers` library.

The last token of every vocabulary ends a document and occurs in no text. Every token stands for a
fixed number of bytes, so that nats per *text* byte are comparable between tokenizers.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from moebench.disk import expanded, read_bytes, reason
from moebench.errors import DataError

END = 0xFF  # ends each document of bytes; no UTF-8 text contains it
END_WORD = "<|end_of_document|>"  # what moebench export calls that token
BYTES = "bytes"
FILE = "tokenizer.json"
MAX_BYTES = 1 << 20  # that are encoded at a time

Tokens = npt.NDArray[np.unsignedinteger]


class Tokenizer(Protocol):
    """An encoder of text as tokens 0 to vocab_size - 1, of which the last ends a document.

    Attributes:
        name: "bytes" or "subwords".
        hash: hex digest of everything that decides how text is encoded.
    """

    name: str
    vocab_size: int
    end: int

    @property
    def hash(self) -> str: ...

    def encode(self, text: bytes) -> Tokens:
        """Tokens [n] of a text in UTF-8, without an end token."""
        ...

    def decode(self, tokens: npt.ArrayLike) -> str:
        """The text of tokens [n], without end tokens; bytes of a cut character become U+FFFD."""
        ...

    def spelled(self, tokens: npt.ArrayLike) -> bytes:
        """The bytes that tokens [n] stand for, UTF-8 or not, without end tokens."""
        ...

    def bytes_in(self, tokens: npt.ArrayLike) -> int:
        """The bytes of text that tokens of any shape stand for; an end token stands for none."""
        ...


def smallest_type(vocab_size: int) -> np.dtype[Any]:
    """The smallest of uint8, uint16 and uint32 that holds a vocabulary, little-endian."""
    return np.dtype(np.min_scalar_type(vocab_size - 1)).newbyteorder("<")


class ByteTokenizer:
    """UTF-8 bytes as tokens 0 to 254; token 255 ends a document."""

    name = BYTES
    vocab_size = 256
    end = END

    @property
    def hash(self) -> str:
        return hashlib.sha256(
            f"{self.name}: utf-8, {self.end:#x} ends a document".encode()
        ).hexdigest()

    def encode(self, text: bytes) -> npt.NDArray[np.uint8]:
        return np.frombuffer(text, np.uint8).copy()

    def decode(self, tokens: npt.ArrayLike) -> str:
        return self.spelled(tokens).decode(errors="replace")

    def spelled(self, tokens: npt.ArrayLike) -> bytes:
        array = np.asarray(tokens)
        return array[array != self.end].astype(np.uint8).tobytes()

    def bytes_in(self, tokens: npt.ArrayLike) -> int:
        return int(np.count_nonzero(np.asarray(tokens) != self.end))


class Subwords:
    """The vocabulary of a byte-level tokenizer.json, and an end token after the last.

    A file of `moebench export` has that token already.
    A special token of the file has no special meaning: in a text, it is text.

    Args:
        content: of the file.
        setting: the key and value that name the file; error messages begin with it.

    Raises DataError for a file that is broken, or whose tokens do not stand for fixed bytes.
    """

    name = "subwords"

    def __init__(self, content: bytes, setting: str):
        from tokenizers import Tokenizer as Backend

        self.setting = setting
        with refusing(f"{setting}: is no tokenizer"):
            self._backend = Backend.from_str(content.decode())
            decoder = json.loads(content)["decoder"]
        if "ByteLevel" not in json.dumps(decoder):
            raise DataError(
                f"{setting}: is not byte-level, so that its tokens do not stand for fixed bytes "
                "and bits per byte could not be exact; give a byte-level one, as of GPT-2, Llama 3 "
                "or Qwen"
            )
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = True
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        added = {token.content for token in self._backend.get_added_tokens_decoder().values()}
        last = max(vocabulary.values())
        has_end = END_WORD in added and vocabulary[END_WORD] == last
        self.end = last if has_end else last + 1
        whose = b"its" if has_end else b"the"
        self.hash = hashlib.sha256(content + b"\n%s last token ends a document" % whose).hexdigest()
        self.vocab_size = self.end + 1
        self._pieces = [b""] * self.vocab_size
        table = letters()
        for piece, number in vocabulary.items():
            if piece in added:
                self._pieces[number] = piece.encode()
            elif all(letter in table for letter in piece):
                self._pieces[number] = bytes(table[letter] for letter in piece)
        self._pieces[self.end] = b""
        self._sizes = np.array([len(piece) for piece in self._pieces])
        self._type = smallest_type(self.vocab_size)

    def encode(self, text: bytes) -> Tokens:
        """Tokens [n] of a text; DataError if they do not stand for exactly its bytes."""
        return np.concatenate([self._encode(part) for part in _split(text)], dtype=self._type)

    def _encode(self, text: bytes) -> Tokens:
        with refusing(f"{self.setting}: cannot encode the text"):
            tokens = self._backend.encode(text.decode(), add_special_tokens=False).ids
        decoded = self.spelled(tokens)
        if decoded != text:
            pairs = enumerate(zip(text, decoded, strict=False))
            at = next((i for i, (a, b) in pairs if a != b), min(len(text), len(decoded)))
            lost = text[at : at + 20].decode(errors="replace")
            raise DataError(
                f"{self.setting}: changes text, here from {lost!r} on, so that bits per byte could "
                "not be exact; give a tokenizer without a normalizer or a prefix"
            )
        return np.array(tokens, self._type)

    def decode(self, tokens: npt.ArrayLike) -> str:
        return self.spelled(tokens).decode(errors="replace")

    def spelled(self, tokens: npt.ArrayLike) -> bytes:
        return b"".join([self._pieces[token] for token in np.asarray(tokens).tolist()])

    def bytes_in(self, tokens: npt.ArrayLike) -> int:
        return int(self._sizes[np.asarray(tokens)].sum())


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Raise DataError for anything that the tokenizers library raises meanwhile.

    Its errors have no type of their own, and a panic of its code is no Exception: a regular
    expression of a tokenizer can take too many steps on a text.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:
        raise DataError(
            f"{what} ({reason(error)}); give a tokenizer.json of the tokenizers library"
        ) from None


def _split(text: bytes) -> Iterator[bytes]:
    """A text in parts of at most MAX_BYTES, cut after line ends where possible."""
    begin = 0
    while len(text) - begin > MAX_BYTES:
        end = text.rfind(b"\n", begin, begin + MAX_BYTES) + 1
        if not end:
            end = begin + MAX_BYTES
            while text[end] & 0xC0 == 0x80:  # inside a character
                end -= 1
        yield text[begin:end]
        begin = end
    yield text[begin:]


def letters() -> dict[str, int]:
    """Letter -> byte: how byte-level vocabularies print bytes (GPT-2's table)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + number): byte for number, byte in enumerate(hidden)
    }


def train_bpe(texts: Iterable[str], vocab_size: int) -> bytes:
    """Train byte-pair encoding on texts; returns a tokenizer.json, equal for equal texts.

    Args:
        vocab_size: tokens, the end token included.

    Raises DataError if the texts have too few pairs.
    """
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, trainers

    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore
    backend.decoder = decoders.ByteLevel()  # type: ignore
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    backend.train_from_iterator(texts, trainer)
    size = backend.get_vocab_size() + 1
    if size < vocab_size:
        raise DataError(
            f"data.vocab_size={vocab_size}: the text has pairs for {size} tokens only; "
            f"use at most data.vocab_size={size}, or add text"
        )
    return backend.to_str().encode()


def read_tokenizer(path: str) -> bytes:
    """The content of a tokenizer.json; DataError if it cannot be read."""
    try:
        return read_bytes(expanded(path))
    except (OSError, ValueError) as error:
        raise DataError(
            f"data.tokenizer={path}: cannot be read ({reason(error)}); use bytes, bpe or the path "
            "of a tokenizer.json"
        ) from None
