"""A sharded checkpoint, made of the one-file fixture."""

import json
import shutil
from pathlib import Path

from safetensors.numpy import load_file, save_file

INDEX = "model.safetensors.index.json"
SIDE_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "sub/notes.txt")
SKIPPED = "pytorch_model.bin"


def shard(model_folder: Path, folder: Path) -> Path:
    """Write the tensors of `model_folder` as two shards with an index, side files, and a copy in another format."""
    folder.mkdir(parents=True)
    tensors = load_file(model_folder / "model.safetensors")
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    for i, part in enumerate((names[::2], names[1::2]), 1):
        shard_name = f"model-0000{i}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / shard_name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, shard_name)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total, "made by": "a test"}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / INDEX).write_text(json.dumps(index))
    for path in model_folder.glob("*.json"):
        shutil.copyfile(path, folder / path.name)
    (folder / "sub").mkdir()
    (folder / "sub" / "notes.txt").write_text("kept")
    (folder / SKIPPED).write_bytes(b"the same weights again")
    (folder / ".cache").write_text("hidden")
    return folder


def files_in(folder: Path) -> set[str]:
    """All files below `folder`, hidden ones included."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
