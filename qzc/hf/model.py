"""transformers models from the weights of a checkpoint, whole or in parts. torch and transformers load when needed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..codec.errors import InvalidArgumentError, UnsupportedError
from ..formats.checkpoint import Checkpoint, Kind, is_qzc, open_checkpoint
from ..formats.safetensors import SafetensorsFile
from ..model import Model, load_file
from ..sources import open_source
from ..threads import thread_count

Task = Literal["causal", "encoder"]

_CAUSAL = ("ForCausalLM", "LMHeadModel")


def import_hf() -> tuple[Any, Any]:
    """The modules torch and transformers. Raises UnsupportedError, saying what to install, where they are missing."""
    try:
        return import_module("torch"), import_module("transformers")
    except ImportError as error:
        raise UnsupportedError(f"this needs torch and transformers ({error}): pip install 'qzc[hf]'") from None


@dataclass(frozen=True)
class HfModel:
    """A checkpoint that transformers can run. folder: where its config and tokenizer are. config: theirs.

    task: "causal" for a model that predicts the next token, "encoder" for any other.
    """

    checkpoint: Checkpoint
    folder: Path
    config: Any
    task: Task

    @property
    def encoder(self) -> bool:
        return self.task == "encoder"

    @property
    def packed(self) -> bool:
        """Whether the weights are in .qzc files."""
        return is_qzc(self.checkpoint.files[0])

    def check_ids(self, ids: Any) -> None:
        """Raise InvalidArgumentError for token ids [windows, length] that the model has no embeddings for."""
        text = self.config.get_text_config()
        size, longest = getattr(text, "vocab_size", None), getattr(text, "max_position_embeddings", None)
        if size and int(ids.max()) >= size:
            raise InvalidArgumentError(
                f"{self.checkpoint.root}: token id {ids.max()} is beyond the vocabulary of {size}; "
                "was the text tokenized for another model?"
            )
        if longest and ids.shape[1] > longest:
            raise InvalidArgumentError(
                f"{self.checkpoint.root}: the model takes up to {longest} tokens, windows have {ids.shape[1]}"
            )

    def load_tokenizer(self) -> Any:
        """The tokenizer in the folder. Raises UnsupportedError if transformers finds none that it can load."""
        _, transformers = import_hf()
        try:
            with quiet():
                return transformers.AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
        except Exception as error:  # tokenizers of a hundred kinds, each with exceptions of its own
            raise UnsupportedError(
                f"{self.folder}: no tokenizer that transformers can load ({_first_line(error)}); "
                "give token ids as .npy or .npz"
            ) from None


def open_hf(path: str | Path, prefer: Kind, config_of: HfModel | None = None) -> HfModel:
    """Find the weights at `path` and the config beside them; without one, that of `config_of`.

    All headers are read and checked, no weights. Raises as `open_checkpoint`; InvalidArgumentError without a config,
    UnsupportedError for models that this transformers does not know and for checkpoints that are quantized already.
    """
    checkpoint = open_checkpoint(path, prefer)
    for file in checkpoint.files:
        with Model(file, 1) if is_qzc(file) else open_source(file) as source:
            if not isinstance(source, Model | SafetensorsFile):
                raise UnsupportedError(f"{file}: GGUF files do not say how to run the model; give the safetensors")
    folder = checkpoint.root if checkpoint.root.is_dir() else checkpoint.root.parent
    if not (folder / "config.json").is_file():
        if config_of is None:
            raise InvalidArgumentError(f"{folder}: there is no config.json, which says how to run the model")
        return HfModel(checkpoint, config_of.folder, config_of.config, config_of.task)
    _, transformers = import_hf()
    try:
        with quiet():
            config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise UnsupportedError(f"{folder}: transformers cannot read the config ({_first_line(error)})") from None
    if getattr(config, "quantization_config", None):
        raise UnsupportedError(f"{folder}: the checkpoint is quantized already; the original is needed")
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedError(f"{folder}: models of encoder and decoder are not handled")
    names = getattr(config, "architectures", None) or []
    config.use_cache = False
    return HfModel(checkpoint, folder, config, "causal" if any(n.endswith(_CAUSAL) for n in names) else "encoder")


class Weights:
    """The tensors of a safetensors checkpoint, one at a time, as torch tensors: floats in float32, others as they are."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._torch, _ = import_hf()
        self._home: dict[str, SafetensorsFile] = {}
        with ExitStack() as stack:
            for path in checkpoint.files:
                file = stack.enter_context(SafetensorsFile(path))
                self._home.update(dict.fromkeys(file.keys(), file))
            self._stack = stack.pop_all()

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The names of all tensors with their shapes."""
        return {name: file.info(name).shape for name, file in self._home.items()}

    def nbytes(self, name: str) -> int:
        return self._home[name].info(name).nbytes

    def tensor(self, name: str) -> Any:
        """A tensor in memory of its own."""
        array = self._home[name].array(name)
        floats = array.dtype.kind == "f" or array.dtype.name.startswith(("bfloat", "float"))
        tensor = to_torch(array, np.float32 if floats else array.dtype)
        self._home[name].release(name)
        return tensor

    def close(self) -> None:
        """Close the files. Idempotent."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def load_model(model: HfModel, device: str = "cpu", threads: int = 0) -> Any:
    """The model with all its weights in float32, in evaluation mode. A .qzc checkpoint is decoded for it.

    Raises UnsupportedError for weights that transformers misses in the checkpoint, and what reading raises.
    """
    torch, _ = import_hf()
    if model.packed:
        arrays = load_file(model.checkpoint.root, np.float32, threads=threads)
        tensors = {name: to_torch(arrays.pop(name)) for name in list(arrays)}
    else:
        with Weights(model.checkpoint) as weights:
            tensors = {name: weights.tensor(name) for name in weights.shapes()}
    kind = type(skeleton(model))
    try:
        with quiet():
            built, info = kind.from_pretrained(
                None, config=model.config, state_dict=tensors, output_loading_info=True, dtype=torch.float32
            )
    except (ValueError, RuntimeError, KeyError) as error:
        raise UnsupportedError(
            f"{model.checkpoint.root}: transformers cannot load the weights ({_first_line(error)})"
        ) from None
    missing = sorted(name for name in info["missing_keys"] if not is_pooler(name))
    if missing or info["mismatched_keys"]:
        wrong = missing or sorted(str(item[0]) for item in info["mismatched_keys"])
        raise UnsupportedError(
            f"{model.checkpoint.root}: {kind.__name__} needs the tensor {wrong[0]!r}, and the checkpoint "
            f"{'has none' if missing else 'has one of another shape'} ({len(wrong)} in all)"
        )
    if info["missing_keys"]:
        drop_pooler(built)
    return built.to(device).eval()


def skeleton(model: HfModel) -> Any:
    """The model without weights: parameters on torch's meta device, buffers (frequencies, position ids) as they are."""
    torch, transformers = import_hf()
    auto = transformers.AutoModel if model.encoder else transformers.AutoModelForCausalLM
    try:
        with quiet(), _parameters_on_meta(torch):
            return auto.from_config(model.config, dtype=torch.float32).eval()
    except (ValueError, ImportError) as error:
        raise UnsupportedError(f"{model.folder}: transformers cannot build the model ({_first_line(error)})") from None


def to_torch(array: NDArray[Any], dtype: DTypeLike | None = None) -> Any:
    """A copy in memory of torch's own: matrix products may be rounded otherwise where arrays are aligned otherwise."""
    torch, _ = import_hf()
    target = np.dtype(dtype or array.dtype).newbyteorder("=")
    tensor = torch.empty(array.shape, dtype=getattr(torch, target.name))
    tensor.numpy()[...] = array
    return tensor


def checkpoint_names(model: Any, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Names in the checkpoint by names in the model, of all parameters and buffers that have one of the same shape.

    A model and its base model differ by a prefix. A head without a tensor of its own is tied to the embeddings.
    """
    prefix = f"{model.base_model_prefix}."
    state = model.state_dict()
    found = {}
    for name, tensor in state.items():
        for candidate in (name, prefix + name, name.removeprefix(prefix)):
            if shapes.get(candidate) == tuple(tensor.shape):
                found[name] = candidate
                break
    head = model.get_output_embeddings()
    if head is not None:
        places = {id(module): name for name, module in model.named_modules()}
        name, source = (f"{places.get(id(part))}.weight" for part in (head, model.get_input_embeddings()))
        if name in state and name not in found and source in found:
            found[name] = found[source]
    return found


def drop_pooler(model: Any) -> None:
    """Without weights for it a pooler would give noise; means over the last hidden states do not need it."""
    for part in model.modules():
        if getattr(part, "pooler", None) is not None:
            part.pooler = None


def is_pooler(name: str) -> bool:
    return "pooler" in name.split(".")


@contextmanager
def running(device: str, threads: int) -> Iterator[None]:
    """No gradients, and this many threads (0: all CPUs) in torch, which are put back afterwards."""
    torch, _ = import_hf()
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InvalidArgumentError(f"torch cannot use the device {device!r}: {_first_line(error)}") from None
    before = torch.get_num_threads()
    torch.set_num_threads(thread_count(threads))
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def quiet() -> Iterator[None]:
    """transformers says nothing: neither bars nor advice. What matters becomes an error of ours."""
    logger = import_module("transformers.utils.logging")
    level, bars = logger.get_verbosity(), logger.is_progress_bar_enabled()
    logger.set_verbosity(logging.CRITICAL)
    logger.disable_progress_bar()
    try:
        yield
    finally:
        logger.set_verbosity(level)
        if bars:
            logger.enable_progress_bar()


@contextmanager
def _parameters_on_meta(torch: Any) -> Iterator[None]:
    """Modules that are built here keep no memory for their parameters. (The device `meta` would take the buffers, too.)"""
    register: Callable[[Any, str, Any], None] = torch.nn.Module.register_parameter

    def on_meta(module: Any, name: str, parameter: Any) -> None:
        register(module, name, parameter)
        if parameter is not None:
            module._parameters[name] = torch.nn.Parameter(parameter.to("meta"), requires_grad=False)

    torch.nn.Module.register_parameter = on_meta
    try:
        yield
    finally:
        torch.nn.Module.register_parameter = register


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
