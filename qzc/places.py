"""Where output goes: default names, names inside folders, what must not be overwritten, and the files copied along."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from .codec.errors import InvalidArgumentError
from .formats.access import naming_os_errors
from .formats.checkpoint import WEIGHT_SUFFIXES, Checkpoint

SOURCE_INDEX = "qzc_source_index"
"""Key of a packed folder's index that holds the text of the original one, where all files can be given back as they were."""


def packed_output(checkpoint: Checkpoint) -> Path:
    """`model.safetensors` or `model.gguf` -> `model.qzc` beside it; `folder` -> `folder-qzc`."""
    if checkpoint.is_folder:
        folder = _named_folder(checkpoint)
        return folder.with_name(folder.name + "-qzc")
    name = checkpoint.root.name.removesuffix(".safetensors").removesuffix(".gguf")
    return checkpoint.root.with_name(name + ".qzc")


def unpacked_output(checkpoint: Checkpoint, kind: str = "safetensors") -> Path:
    """`model.qzc` -> `model.safetensors` (or `.gguf`) beside it; `folder-qzc` -> `folder`, `folder` -> `folder-unpacked`."""
    if not checkpoint.is_folder:
        name = unpacked_name(checkpoint.root.name)
        return checkpoint.root.with_name(name.removesuffix(".safetensors").removesuffix(".gguf") + f".{kind}")
    folder = _named_folder(checkpoint)
    bare = folder.name.removesuffix("-qzc")
    return folder.with_name(bare if bare and bare != folder.name else folder.name + "-unpacked")


def packed_name(name: str) -> str:
    """A file in a packed folder: transformers finds `model.qzc.safetensors` with `variant="qzc"`."""
    return name.removesuffix(".safetensors") + ".qzc.safetensors"


def unpacked_name(name: str) -> str:
    """`model.qzc` and `model.qzc.safetensors` -> `model.safetensors`; `model.gguf.qzc.safetensors` -> `model.gguf`."""
    bare = name.removesuffix(".safetensors").removesuffix(".qzc")
    return bare if bare.endswith(".gguf") else bare + ".safetensors"


def packed_index_name(name: str) -> str:
    """`model.safetensors.index.json` -> `model.safetensors.index.qzc.json`, where transformers looks for a variant."""
    return name.removesuffix(".json") + ".qzc.json"


def unpacked_index_name(name: str) -> str:
    """`model.safetensors.index.qzc.json` -> `model.safetensors.index.json`."""
    return name.removesuffix(".json").removesuffix(".qzc") + ".json"


def check_output(checkpoint: Checkpoint, target: Path) -> None:
    """Refuse an output that would replace its own input, which may be the only copy, even if overwriting was asked for.

    Also a folder under the name of a file, which nobody means.

    Raises InvalidArgumentError.
    """
    if checkpoint.is_folder:
        source, place = os.path.realpath(_folder(checkpoint)), os.path.realpath(target)
        if place == source:
            raise InvalidArgumentError(f"{target}: the output folder is the input folder; choose another with -o")
        if place.startswith(os.path.join(source, "")):
            # The next run would take it for a part of the input.
            raise InvalidArgumentError(f"{target}: the output folder lies in the input folder; choose another with -o")
        if target.name.endswith(WEIGHT_SUFFIXES) and not os.path.isdir(target):
            raise InvalidArgumentError(f"{target}: the input is a folder, so the output is one; name a folder with -o")
    elif os.path.exists(target) and os.path.samefile(target, checkpoint.root):
        raise InvalidArgumentError(f"{target}: the output is the input file; choose another with -o")


def copy_side_files(checkpoint: Checkpoint, folder: Path) -> None:
    """Copy config, tokenizer and the like, with their places in subfolders."""
    for path in checkpoint.side_files:
        place = folder / path.relative_to(_folder(checkpoint))
        with naming_os_errors(path, "copy"):
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)


def _folder(checkpoint: Checkpoint) -> Path:
    """The folder of a checkpoint that may have been opened by its index."""
    return checkpoint.root if checkpoint.root.is_dir() else checkpoint.root.parent


def _named_folder(checkpoint: Checkpoint) -> Path:
    """The same, made absolute if it is `.` or the like, which have no name to build on."""
    folder = _folder(checkpoint)
    return folder if folder.name not in ("", "..") else folder.resolve()
