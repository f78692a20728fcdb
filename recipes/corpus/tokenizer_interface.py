"""What every tokenizer can do, whatever kind of vocabulary it has."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, NotRequired, TypedDict

from recipes.common.errors import UserError

SPECIAL_PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
ROLES = ("pad", "unk", "cls", "sep", "mask")
"""What the special pieces are for, in their order."""


class TokenizerInfo(TypedDict):
    """What manifests and exports say of a tokenizer; older ones lack some of it."""

    fingerprint: str
    vocab_size: int
    lower_case: bool
    special_ids: dict[str, int]
    normalizer: NotRequired[str]
    keeps_text: NotRequired[bool]
    kind: NotRequired[str]


class Tokenizer(ABC):
    """Cuts text into pieces of a fixed vocabulary.

    No text gives the id of [PAD], [CLS], [SEP] or [MASK]: a document that spells "[MASK]" must not
    pretend that a position is masked.

    Attributes:
        kind: name of the algorithm.
        path: the file that it was read from.
        pad_id, unk_id, cls_id, sep_id, mask_id: of the special pieces.
    """

    kind: ClassVar[str]
    path: Path
    pad_id: int
    unk_id: int
    cls_id: int
    sep_id: int
    mask_id: int

    @property
    def special_ids(self) -> dict[str, int]:
        """Ids of pad, unk, cls, sep and mask."""
        ids = (self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id)
        return dict(zip(ROLES, ids, strict=True))

    def info(self) -> TokenizerInfo:
        """Return what is written down of it beside data and weights."""
        return {
            "fingerprint": self.fingerprint,
            "vocab_size": self.vocab_size,
            "lower_case": self.lower_case,
            "normalizer": self.normalizer,
            "keeps_text": self.keeps_text,
            "kind": self.kind,
            "special_ids": self.special_ids,
        }

    @property
    def vocab_size(self) -> int:
        """Number of pieces, the special ones included."""
        return len(self.pieces)

    @property
    @abstractmethod
    def pieces(self) -> tuple[str, ...]:
        """The pieces in the order of their ids."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256 of everything that decides the ids of a text, and the text of ids."""

    @property
    @abstractmethod
    def normalizer(self) -> str:
        """Name of what changes a text before it is cut, such as `nmt_nfkc_cf`."""

    @property
    @abstractmethod
    def lower_case(self) -> bool:
        """Tells whether case is folded."""

    @property
    @abstractmethod
    def keeps_text(self) -> bool:
        """Tells whether `decode` gives back exactly what was encoded."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Cut a text into pieces; returns their ids, without [CLS] and [SEP]."""

    @abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode several texts on one thread: here processes run in parallel, not threads."""

    @abstractmethod
    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Encode a text, and tell which characters of it each piece is made of.

        Pieces that share a character, such as its bytes, all have its place.

        Returns:
            The ids, as `encode` has them, and for each the place of its first character and that
            behind its last.
        """

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Turn ids into text; special pieces vanish, and normalisation is not undone."""

    @abstractmethod
    def begins_word(self, index: int) -> bool:
        """Tell whether a piece begins a word."""

    @abstractmethod
    def shown(self, index: int) -> str:
        """Return a piece as a reader of guesses should see it."""

    @abstractmethod
    def hf_files(self, max_length: int | None = None) -> dict[str, bytes]:
        """Return the files that transformers' `AutoTokenizer` reads, by their names.

        It gives the ids of `encode`, with [CLS] and [SEP] around them, if it is called with
        `split_special_tokens=True`. Without that it takes "[MASK]" in a text for the special piece,
        as `pipeline("fill-mask")` must, and so for the other special pieces.

        Args:
            max_length: tokens of the longest sequence that the model takes; None: any.

        Raises:
            UserError: there is no counterpart of this tokenizer; every reason is named.
        """

    def why_no_hf_files(self) -> Iterator[str]:
        """Say why `hf_files` would raise an error; nothing, if it does not."""
        yield from ()

    @abstractmethod
    def files(self, max_length: int | None = None) -> dict[str, bytes]:
        """Return the files that a prepared directory and an export hold, by their names.

        `open_tokenizer` on a directory with these gives an equal tokenizer.

        Args:
            max_length: tokens of the longest sequence that the model takes; None: any.
        """


def read_file(path: Path) -> bytes:
    """Read a file of a tokenizer.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot read the tokenizer: {error.strerror}") from None
