"""Texts as windows of token ids, all of one length, so that no padding ever enters a statistic."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from ..codec.errors import InvalidArgumentError, UnsupportedError
from ..formats.access import naming_os_errors, open_input

ARRAYS = (".npy", ".npz")
CHARACTERS = 8  # per token, to begin with: long texts are not tokenized further than they are used


@dataclass(frozen=True)
class WindowOptions:
    """How texts are cut. count: windows at most. length: tokens of a window, special ones included.

    special_tokens: begin and end each window as the tokenizer would a text; None does so for texts that an encoder reads.
    """

    count: int = 200
    length: int = 256
    special_tokens: bool | None = None

    def __post_init__(self) -> None:
        if self.count < 1:
            raise InvalidArgumentError(f"{self.count} windows: there must be at least one")
        if self.length < 2:
            raise InvalidArgumentError(f"windows of {self.length} tokens: at least 2 are needed")


@dataclass(frozen=True, eq=False)
class Windows:
    """ids: int64 [windows, length]. texts: the names of the files. tokenization: how ids were made of them, for people."""

    ids: NDArray[np.int64]
    texts: tuple[str, ...]
    tokenization: str

    @property
    def hash(self) -> str:
        """XXH3-64 of the ids, uint32 little-endian, window after window: 16 hexadecimal digits."""
        return xxhash.xxh3_64_hexdigest(np.ascontiguousarray(self.ids, np.dtype("<u4")))

    def __str__(self) -> str:
        count, length = self.ids.shape
        return f"{count} windows of {length} tokens from {', '.join(self.texts)}; {self.tokenization}"


def read_windows(
    texts: Sequence[str | Path], options: WindowOptions, encoder: bool, load_tokenizer: Callable[[], Any]
) -> Windows:
    """The first windows of each text, one of each in turn until there are enough. No window spans two texts.

    texts: UTF-8 text, or token ids in .npy or .npz (`file.npz:name` says which array): integers [tokens], or
    [windows, length]. A rest shorter than a window is left out. load_tokenizer: called if it is needed.

    Raises InvalidArgumentError (nothing to read, ids out of range), FileAccessError, and what `load_tokenizer` raises.
    """
    if not texts:
        raise InvalidArgumentError("no text to read: give at least one file")
    found = [_find(text) for text in texts]
    plain = [path for path, _ in found if path.suffix not in ARRAYS]
    tokenizer: Any = None
    begin: list[int] = []
    end: list[int] = []
    special = bool(plain) and encoder if options.special_tokens is None else options.special_tokens
    if plain or special:
        tokenizer = load_tokenizer()
    if special:
        begin, end = _special_tokens(tokenizer, encoder)
    length = options.length - len(begin) - len(end)
    if length < 1:
        raise InvalidArgumentError(f"windows of {options.length} tokens have no room for text beside special tokens")
    pieces = []
    for path, name in found:
        if path.suffix in ARRAYS:
            ids = _array(path, name, length)
        else:
            ids = _tokens(path, tokenizer, options.count * length)
        count = min(len(ids) // length, options.count)
        if not count:
            raise InvalidArgumentError(f"{path}: {len(ids)} tokens, not enough for one window of {options.length}")
        rows = ids[: count * length].reshape(count, length)
        pieces.append(np.hstack([np.tile(begin, (count, 1)), rows, np.tile(end, (count, 1))]).astype(np.int64))
    turns = sorted((row, text) for text, piece in enumerate(pieces) for row in range(len(piece)))[: options.count]
    how = f"{type(tokenizer).__name__} of the model" if plain else "token ids as given"
    how += _special_text(tokenizer, begin, end)
    names = tuple(path.name + (f":{name}" if name else "") for path, name in found)
    return Windows(np.stack([pieces[text][row] for row, text in turns]), names, how)


def _find(text: str | Path) -> tuple[Path, str]:
    """`file.npz:name` -> the file and the name; any other path as it is."""
    path, _, name = str(text).rpartition(":")
    if path.endswith(".npz") and not Path(text).exists():
        return Path(path), name
    return Path(text), ""


def _array(path: Path, name: str, length: int) -> NDArray[np.int64]:
    with naming_os_errors(path, "read"), open_input(path) as file:
        try:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                ids = loaded
            else:
                name = name or (loaded.files[0] if len(loaded.files) == 1 else "")
                if name not in loaded.files:
                    known = ", ".join(loaded.files)
                    raise InvalidArgumentError(f"{path}: say which array, as {path}:NAME; it has {known}")
                ids = loaded[name]
        except InvalidArgumentError:
            raise
        except (ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
            raise InvalidArgumentError(f"{path}: not an array of token ids ({error})") from None
    if ids.dtype.kind not in "iu" or not (ids.ndim == 1 or (ids.ndim == 2 and ids.shape[1] == length)):
        raise InvalidArgumentError(
            f"{path}: {ids.dtype}{list(ids.shape)} is not token ids: give integers [tokens], or [windows, {length}]"
        )
    if ids.size and (ids.min() < 0 or ids.max() >= 1 << 31):
        raise InvalidArgumentError(f"{path}: token ids must lie in 0 .. 2^31 - 1")
    return ids.reshape(-1).astype(np.int64)


def _tokens(path: Path, tokenizer: Any, count: int) -> NDArray[np.int64]:
    """At least `count` tokens of a text, or all of them. Cut at ends of lines, where tokenizers start anew."""
    with naming_os_errors(path, "read"), open_input(path) as file:
        try:
            text = file.read().decode()
        except UnicodeDecodeError as error:
            raise InvalidArgumentError(f"{path}: not UTF-8 text (byte {error.start:,})") from None
    size = CHARACTERS * count
    while True:
        end = text.rfind("\n", 0, size) + 1 if size < len(text) else len(text)
        ids = tokenizer(text[: end or size], add_special_tokens=False, verbose=False)["input_ids"] if text else []
        if len(ids) >= count or size >= len(text):
            return np.array(ids, np.int64)
        size *= 4


def _special_tokens(tokenizer: Any, encoder: bool) -> tuple[list[int], list[int]]:
    first = tokenizer.bos_token_id if tokenizer.cls_token_id is None else tokenizer.cls_token_id
    last = tokenizer.eos_token_id if tokenizer.sep_token_id is None else tokenizer.sep_token_id
    if not encoder:
        first, last = tokenizer.bos_token_id, None
    if first is None:
        raise UnsupportedError("the tokenizer names no token that begins a text; use --no-special-tokens")
    return [first], [] if last is None else [last]


def _special_text(tokenizer: Any, begin: list[int], end: list[int]) -> str:
    words = [tokenizer.convert_ids_to_tokens(ids[0]) for ids in (begin, end) if ids]
    return f", each window with {' ... '.join(words)}" if words else ", no special tokens"
