"""Tiny transformers models with random weights, made on the spot. Tests that use them are skipped without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

torch: Any = pytest.importorskip("torch")
transformers: Any = pytest.importorskip("transformers")
torch.set_num_threads(1)

VOCABULARY = 64
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}


def llama(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """A Llama with grouped key and value heads and a head of its own, saved by transformers."""
    sizes = {**SIZES, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, **changes}
    return save(transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)), folder, seed)


def bert(folder: Path, seed: int = 0) -> Path:
    """A BERT as sentence embedders are: the base model, pooler included."""
    return save(transformers.BertModel(transformers.BertConfig(**SIZES)), folder, seed)


def save(model: Any, folder: Path, seed: int = 0) -> Path:
    """Fill a model with normal deviates, large enough to matter, and save it."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.3, generator=generator)
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder)
    return folder


def tokens(path: Path, count: int = 2000, seed: int = 0) -> Path:
    """A .npy file of random token ids."""
    np.save(path, random_ids(count, seed))
    return path


def random_ids(count: int, seed: int = 0) -> NDArray[np.uint16]:
    return np.random.default_rng(seed).integers(3, VOCABULARY, count).astype(np.uint16)
