"""The small model in fixtures/ is what its script makes, small, and real."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

ROOT = Path(__file__).parent.parent


def test_model_is_what_the_script_makes(shared_data: Callable[[str], Path], model_folder: Path, tmp_path: Path) -> None:
    source = shared_data("wikillama-7m")
    script = ROOT / "fixtures" / "make_model.py"
    subprocess.run([sys.executable, str(script), str(source), str(tmp_path)], check=True)
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert made == {path.name: path.read_bytes() for path in model_folder.iterdir()}


def test_model_fits_its_config(model_folder: Path) -> None:
    config = json.loads((model_folder / "config.json").read_text("utf-8"))
    tokenizer = json.loads((model_folder / "tokenizer.json").read_text("utf-8"))
    tensors = load_file(model_folder / "model.safetensors")
    width, ffn = config["hidden_size"], config["intermediate_size"]
    heads, kv_heads = (config[name] * config["head_dim"] for name in ("num_attention_heads", "num_key_value_heads"))
    shapes = {
        "self_attn.q_proj": (heads, width),
        "self_attn.k_proj": (kv_heads, width),
        "self_attn.v_proj": (kv_heads, width),
        "self_attn.o_proj": (width, heads),
        "mlp.gate_proj": (ffn, width),
        "mlp.up_proj": (ffn, width),
        "mlp.down_proj": (width, ffn),
        "input_layernorm": (width,),
        "post_attention_layernorm": (width,),
    }
    layers = range(config["num_hidden_layers"])
    expected = {f"model.layers.{i}.{name}.weight": shape for i in layers for name, shape in shapes.items()}
    expected |= {"model.embed_tokens.weight": (config["vocab_size"], width), "model.norm.weight": (width,)}
    assert {name: tensor.shape for name, tensor in tensors.items()} == expected
    assert sorted(tokenizer["model"]["vocab"].values()) == list(range(config["vocab_size"]))


def test_model_is_small_and_trained(model_folder: Path) -> None:
    assert sum(path.stat().st_size for path in model_folder.iterdir()) < 2_500_000
    for name, tensor in load_file(model_folder / "model.safetensors").items():
        assert tensor.dtype == np.float32 and np.isfinite(tensor).all()
        # A norm starts as ones: only training moves it, every channel its own way.
        if tensor.ndim == 1:
            assert tensor.std() > 0.02, name
