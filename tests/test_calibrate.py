"""Statistics of the inputs of linear layers: right, shared, the same however they are come by, and tied to the model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

import qzc
from qzc.calibration import Calibration, fingerprint
from qzc.hf.calibrate import CalibrateOptions, calibrate
from qzc.hf.inputs import InputSums
from qzc.hf.text import WindowOptions
from tests.command_line import inside, ok
from tests.shards import shard

pytest.importorskip("torch")
pytest.importorskip("transformers")

from tests.hf_models import SIZES, bert, llama, save, tokens, torch, transformers

WINDOWS = WindowOptions(count=11, length=24)
OPTIONS = CalibrateOptions(WINDOWS, sensitivity_windows=0, threads=1)
MEASURED = CalibrateOptions(WINDOWS, sensitivity_windows=4, threads=1)


@pytest.fixture(scope="module", autouse=True)
def passes_of_three() -> Iterator[None]:
    """Several forward passes, the last one with fewer windows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qzc.hf.calibrate.PASS_TOKENS", 3 * WINDOWS.length)
        yield


@pytest.fixture(scope="module")
def ids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tokens(tmp_path_factory.mktemp("text") / "ids.npy")


@pytest.fixture(scope="module")
def small_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama(tmp_path_factory.mktemp("llama") / "model")


@pytest.fixture(scope="module")
def small_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bert(tmp_path_factory.mktemp("bert") / "model")


@pytest.fixture(scope="module")
def stats(small_llama: Path, ids: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Statistics of `small_llama`. Read only."""
    return calibrate(small_llama, [ids], tmp_path_factory.mktemp("stats") / "stats.safetensors", OPTIONS).output


def direct_inputs(model: Any, rows: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """What each linear layer is given: float64 [tokens, columns], by the name of its weights in the model."""
    found: dict[str, NDArray[np.float64]] = {}

    def hook(name: str) -> Callable[..., None]:
        def keep(module: Any, arguments: tuple[Any, ...], output: Any) -> None:
            x = arguments[0].double().numpy()
            found[name + ".weight"] = x.reshape(-1, x.shape[-1])

        return keep

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(hook(name))
    with torch.no_grad():
        model(input_ids=torch.from_numpy(rows))
    return found


def rows_of(ids: Path) -> NDArray[np.int64]:
    count = WINDOWS.count * WINDOWS.length
    rows: NDArray[np.int64] = np.load(ids)[:count].astype(np.int64).reshape(WINDOWS.count, WINDOWS.length)
    return rows


# ---------------------------------------------------------------------------------------------------------------------
# The statistics


def test_the_first_layer_by_hand(small_llama: Path, ids: Path, stats: Path) -> None:
    weights = load_file(small_llama / "model.safetensors")
    x = weights["model.embed_tokens.weight"].astype(np.float64)[rows_of(ids).ravel()]
    x = x / np.sqrt((x * x).mean(1, keepdims=True) + 1e-6) * weights["model.layers.0.input_layernorm.weight"]
    with Calibration.open(stats) as found:
        gram = found.gram("model.layers.0.self_attn.q_proj.weight")
    assert gram is not None
    np.testing.assert_allclose(gram, x.T @ x / len(x), rtol=1e-5, atol=1e-6 * abs(gram).max())


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_every_layer_against_a_direct_computation(
    kind: str, small_llama: Path, small_bert: Path, ids: Path, tmp_path: Path
) -> None:
    folder = small_llama if kind == "llama" else small_bert
    auto = transformers.AutoModelForCausalLM if kind == "llama" else transformers.AutoModel
    inputs = direct_inputs(auto.from_pretrained(folder).eval(), rows_of(ids))
    calibrate(folder, [ids], tmp_path / "s", OPTIONS)
    with Calibration.open(tmp_path / "s") as found:
        assert found.tensors == sorted(inputs)
        assert len(inputs) == (22 if kind == "llama" else 19)
        for name, x in inputs.items():
            gram, power, mean = found.gram(name), found.power(name), found.mean(name)
            assert gram is not None and power is not None and mean is not None
            scale = 1e-5 * np.abs(gram).max()
            np.testing.assert_allclose(gram, x.T @ x / len(x), rtol=1e-5, atol=scale, err_msg=name)
            np.testing.assert_array_equal(power, np.diagonal(gram))
            np.testing.assert_array_equal(gram, gram.T)
            np.testing.assert_allclose(mean, x.mean(0), rtol=1e-4, atol=1e-5 * np.abs(x).max())
            assert found.tokens(name) == len(x)


def test_layers_with_one_input_share_it(stats: Path) -> None:
    layer = "model.layers.2"
    with Calibration.open(stats) as found:
        attention = {found.input_of(f"{layer}.self_attn.{name}_proj.weight") for name in "qkv"}
        mlp = {found.input_of(f"{layer}.mlp.{name}_proj.weight") for name in ("gate", "up")}
        rest = {found.input_of(f"{layer}.{name}_proj.weight") for name in ("self_attn.o", "mlp.down")}
        assert len(attention) == len(mlp) == 1 and len(attention | mlp | rest) == 4
        assert found.input_of("model.norm.weight") is None and found.tokens("model.norm.weight") == 0
        assert found.gram("model.norm.weight") is None and found.power("model.norm.weight") is None
    grams = [name for name in load_file(stats) if name.endswith(".gram")]
    assert len(grams) == 4 * 3 + 1  # and the head


def test_a_tied_head_is_named_as_the_embeddings(ids: Path, tmp_path: Path) -> None:
    tied = llama(tmp_path / "tied", tie_word_embeddings=True)
    assert "lm_head.weight" not in load_file(tied / "model.safetensors")
    calibrate(tied, [ids], tmp_path / "s", OPTIONS)
    with Calibration.open(tmp_path / "s") as found:
        assert found.gram("model.embed_tokens.weight") is not None


def test_diagonal_only(small_llama: Path, ids: Path, stats: Path, tmp_path: Path) -> None:
    calibrate(small_llama, [ids], tmp_path / "s", replace(OPTIONS, grams=False))
    with Calibration.open(stats) as full, Calibration.open(tmp_path / "s") as found:
        assert found.tensors == full.tensors
        for name in found.tensors:
            power, expected = found.power(name), full.power(name)
            assert found.gram(name) is None and power is not None and expected is not None
            np.testing.assert_allclose(power, expected, rtol=1e-5)
    assert (tmp_path / "s").stat().st_size < stats.stat().st_size / 3


def test_layers_that_part_have_statistics_of_their_own() -> None:
    rng = np.random.default_rng(0)
    layers = {name: torch.nn.Linear(4, 2) for name in "abc"}
    passes = [rng.standard_normal((5, 4)).astype(np.float32) for _ in range(6)]
    given: list[dict[str, list[int]]] = [
        {"a": [0], "b": [0], "c": [0]},  # all one input
        {"a": [1], "b": [2], "c": [1]},  # b parts
        {"a": [3], "b": [3], "c": [4]},  # so does c; that a and b are together again is not enough
        {"a": [5, 0], "b": []},  # called twice, or not at all
    ]
    sums = InputSums(layers, True)
    with torch.no_grad(), sums.listening():
        for calls in given:
            inputs = [torch.from_numpy(x) for x in passes]
            for name, indices in calls.items():
                for index in indices:
                    layers[name](inputs[index])
            sums.end_pass()
    found = {result.tensors: result for result in sums.results()}
    assert sorted(found) == [("a",), ("b",), ("c",)]
    for (name,), result in found.items():
        x = np.vstack([passes[index] for calls in given for index in calls.get(name, [])]).astype(np.float64)
        expected = x.T @ x / len(x)
        assert result.tokens == len(x) and result.triangle is not None
        np.testing.assert_allclose(result.triangle, expected[np.tril_indices(4)], rtol=1e-5, atol=1e-6)


def test_memory_that_is_used_again_is_not_taken_for_the_same_input() -> None:
    layers = {name: torch.nn.Linear(4, 2) for name in "ab"}
    sums = InputSums(layers, True)
    buffer = torch.zeros(5, 4)
    with torch.no_grad(), sums.listening():
        layers["a"](buffer)
        buffer += 1
        layers["b"](buffer)
        sums.end_pass()
    assert [result.power.tolist() for result in sums.results()] == [[0.0] * 4, [1.0] * 4]


# ---------------------------------------------------------------------------------------------------------------------
# How the model is run


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_block_by_block_is_the_same_as_at_once(
    kind: str, small_llama: Path, small_bert: Path, ids: Path, tmp_path: Path
) -> None:
    folder = small_llama if kind == "llama" else small_bert
    blocks = calibrate(folder, [ids], tmp_path / "blocks", OPTIONS)
    whole = calibrate(folder, [ids], tmp_path / "whole", replace(OPTIONS, in_blocks=False))
    assert blocks.whole is None and whole.whole is not None
    assert (blocks.inputs, blocks.tensors, blocks.uncovered) == (whole.inputs, whole.tensors, ())
    assert blocks.output.read_bytes() == whole.output.read_bytes()


def test_a_model_that_does_not_run_block_by_block_is_run_at_once(ids: Path, tmp_path: Path) -> None:
    config = transformers.AlbertConfig(**SIZES, embedding_size=16)  # one layer, used again and again
    folder = save(transformers.AlbertModel(config), tmp_path / "albert")
    report = calibrate(folder, [ids], tmp_path / "s", OPTIONS)
    assert report.whole and report.tensors == 8 and report.tokens == WINDOWS.count * WINDOWS.length
    with Calibration.open(tmp_path / "s") as found:
        query = "encoder.albert_layer_groups.0.albert_layers.0.attention.query.weight"
        assert found.tokens(query) == 3 * report.tokens
    assert not (tmp_path / "s.partial").exists()


def test_experts_are_reported_as_left_out(ids: Path, tmp_path: Path) -> None:
    config = transformers.Qwen3MoeConfig(
        **SIZES, num_key_value_heads=2, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24
    )
    report = calibrate(save(transformers.Qwen3MoeForCausalLM(config), tmp_path / "moe"), [ids], tmp_path / "s", OPTIONS)
    with Calibration.open(tmp_path / "s") as found:
        assert found.gram("model.layers.0.self_attn.q_proj.weight") is not None
        experts = [name for name in load_file(tmp_path / "moe" / "model.safetensors") if ".experts." in name]
        assert experts and (report.uncovered or all(found.gram(name) is not None for name in experts))


class Interrupted(Exception):
    """Stands for Ctrl-C."""


@pytest.mark.parametrize(("at", "finished"), [("block 0", 0), ("block 1", 1), ("what is in no block", 3)])
def test_an_interrupted_run_goes_on(
    at: str, finished: int, small_llama: Path, ids: Path, stats: Path, tmp_path: Path
) -> None:
    seen: list[str] = []

    def interrupt(doing: str, done: int, total: int) -> None:
        seen.append(doing)
        if seen.count(at) == 2:  # in the middle of it
            raise Interrupted

    output = tmp_path / "stats.safetensors"
    with pytest.raises(Interrupted):
        calibrate(small_llama, [ids], output, OPTIONS, interrupt)
    left = {path.name for path in (tmp_path / "stats.safetensors.partial").iterdir()}
    assert left == {"job.json", f"hidden-{finished:05}.npy", *(f"block-{i:05}.safetensors" for i in range(finished))}
    assert not output.exists()
    seen.clear()
    report = calibrate(small_llama, [ids], output, OPTIONS, lambda doing, done, total: seen.append(doing))
    assert report.resumed == finished
    assert [f"block {i}" in seen for i in range(3)] == [i >= finished for i in range(3)]
    assert output.read_bytes() == stats.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"stats.safetensors"}


def test_work_on_another_text_is_not_gone_on_with(small_llama: Path, ids: Path, stats: Path, tmp_path: Path) -> None:
    def interrupt(doing: str, done: int, total: int) -> None:
        if doing == "block 2":
            raise Interrupted

    other = tokens(tmp_path / "other.npy", seed=5)
    with pytest.raises(Interrupted):
        calibrate(small_llama, [other], tmp_path / "s", OPTIONS, interrupt)
    report = calibrate(small_llama, [ids], tmp_path / "s", OPTIONS)
    assert report.resumed == 0 and report.output.read_bytes() == stats.read_bytes()


def test_a_folder_of_somebody_else_is_left_alone(small_llama: Path, ids: Path, tmp_path: Path) -> None:
    precious = tmp_path / "s.partial" / "precious"
    precious.parent.mkdir()
    precious.write_text("mine")
    with pytest.raises(qzc.FileAccessError, match="in the way"):
        calibrate(small_llama, [ids], tmp_path / "s", OPTIONS)
    assert precious.read_text() == "mine"


def test_progress_counts_up_to_all_weights(small_llama: Path, ids: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    calibrate(small_llama, [ids], tmp_path / "s", OPTIONS, lambda *state: seen.append(state))
    start = next(i for i, (doing, _, _) in enumerate(seen) if doing == "text")
    done = [state[1] for state in seen[start:]]
    assert done == sorted(done) and done[0] == 0 and done[-1] == seen[-1][2]
    assert {f"block {i}" for i in range(3)} < {doing for doing, _, _ in seen}


# ---------------------------------------------------------------------------------------------------------------------
# What errors cost


@pytest.fixture(scope="module")
def measured(small_llama: Path, ids: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Statistics of `small_llama` with sensitivities. Read only."""
    return calibrate(small_llama, [ids], tmp_path_factory.mktemp("stats") / "stats.safetensors", MEASURED).output


@pytest.mark.parametrize("kind", ["llama", "tied", "bert"])
def test_sensitivities_against_a_direct_computation(kind: str, ids: Path, tmp_path: Path) -> None:
    folder = (
        bert(tmp_path / "model") if kind == "bert" else llama(tmp_path / "model", tie_word_embeddings=kind == "tied")
    )
    auto = transformers.AutoModel if kind == "bert" else transformers.AutoModelForCausalLM
    model = auto.from_pretrained(folder).eval()
    stats = calibrate(folder, [ids], tmp_path / "s", MEASURED).output
    rows = torch.from_numpy(rows_of(ids)[[0, 2, 5, 8]])
    weights = load_file(folder / "model.safetensors")
    named = dict(model.named_parameters())
    block = "encoder.layer.1.output.dense.weight" if kind == "bert" else "model.layers.1.mlp.down_proj.weight"
    other = "encoder.layer.2.intermediate.dense.weight" if kind == "bert" else "model.embed_tokens.weight"
    tried = [block, other, *(["lm_head.weight"] if kind == "llama" else [])]
    rng = np.random.default_rng(0)
    with Calibration.open(stats) as found:
        known_names = {name for name in weights if found.sensitivity(name) is not None}
        assert known_names <= {name for name in weights if weights[name].ndim > 1 and "pooler" not in name}
        assert len(known_names) == {"llama": 23, "tied": 22}.get(kind, len(known_names))
        for name in tried:
            gram, known = found.gram(name), found.sensitivity(name)
            assert known is not None
            error = rng.normal(0, 0.02, weights[name].shape).astype(np.float32)
            wide = error.astype(np.float64)
            squared = float(((wide if gram is None else wide @ gram) * wide).sum())
            with torch.no_grad():
                before = outcome(model, rows, kind)
                named[name].add_(torch.from_numpy(error))
                after = outcome(model, rows, kind)
                named[name].copy_(torch.from_numpy(weights[name]))
            harm = (
                1 - (before * after).sum(-1).mean()
                if kind == "bert"
                else (before.exp() * (before - after)).sum(-1).mean()
            )
            assert known == pytest.approx(float(harm) / squared, rel=0.8), name


def outcome(model: Any, rows: Any, kind: str) -> Any:
    if kind != "bert":
        return torch.log_softmax(model(input_ids=rows).logits[:, :-1].double(), -1)
    pooled = model(input_ids=rows).last_hidden_state.double().mean(1)
    return pooled / pooled.norm(dim=1, keepdim=True)


def test_sensitivities_change_nothing_else(stats: Path, measured: Path) -> None:
    plain, arrays = load_file(stats), load_file(measured)
    assert plain.keys() == arrays.keys()
    assert all(np.array_equal(plain[name], arrays[name]) for name in plain)
    with Calibration.open(stats) as without, Calibration.open(measured) as found:
        assert not without.has_sensitivities and found.has_sensitivities
        assert found.metadata["sensitivity_windows"] == "4"


@pytest.mark.parametrize("kind", ["llama", "bert"])
@pytest.mark.parametrize("grams", [True, False])
def test_sensitivities_of_the_whole_model_at_once(
    kind: str, grams: bool, small_llama: Path, small_bert: Path, ids: Path, tmp_path: Path
) -> None:
    folder = small_llama if kind == "llama" else small_bert
    options = replace(MEASURED, grams=grams)
    blocks = calibrate(folder, [ids], tmp_path / "blocks", options)
    whole = calibrate(folder, [ids], tmp_path / "whole", replace(options, in_blocks=False))
    assert blocks.whole is None and whole.whole is not None
    assert blocks.sensitivities == whole.sensitivities > 12
    with Calibration.open(blocks.output) as first, Calibration.open(whole.output) as second:
        for name in load_file(folder / "model.safetensors"):
            expected = first.sensitivity(name)
            found = second.sensitivity(name)
            assert (found is None) if expected is None else found == pytest.approx(expected, rel=2e-3), name


@pytest.mark.parametrize(
    ("at", "finished"),
    [
        ("errors in model.layers.0.mlp.up_proj.weight", 0),
        ("errors in model.layers.0.self_attn.q_proj.weight, block 2", 2),
        ("errors in model.layers.1.mlp.up_proj.weight, end", 3),
    ],
)
def test_interrupted_trials_go_on(
    at: str, finished: int, small_llama: Path, ids: Path, measured: Path, tmp_path: Path
) -> None:
    def interrupt(doing: str, done: int, total: int) -> None:
        if doing == at:
            raise Interrupted

    output = tmp_path / "stats.safetensors"
    with pytest.raises(Interrupted):
        calibrate(small_llama, [ids], output, MEASURED, interrupt)
    report = calibrate(small_llama, [ids], output, MEASURED)
    assert report.resumed == finished
    assert output.read_bytes() == measured.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"stats.safetensors"}


def test_progress_of_trials(small_llama: Path, ids: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    calibrate(small_llama, [ids], tmp_path / "s", MEASURED, lambda *state: seen.append(state))
    start = next(i for i, (doing, _, _) in enumerate(seen) if doing == "text")
    done = [state[1] for state in seen[start:]]
    assert done == sorted(done) and done[0] == 0 and done[-1] == seen[-1][2]


# ---------------------------------------------------------------------------------------------------------------------
# The file and the model it belongs to


def test_metadata_says_what_was_run(small_llama: Path, ids: Path, stats: Path) -> None:
    with Calibration.open(stats) as found:
        metadata = found.metadata
        assert found.model_hash == fingerprint(small_llama)
    assert (metadata["tokens"], metadata["windows"], metadata["window_length"]) == ("264", "11", "24")
    assert metadata["architecture"] == "LlamaForCausalLM"
    assert "no special tokens" in metadata["tokenization"]


def test_statistics_of_another_model_are_refused(small_llama: Path, stats: Path, tmp_path: Path) -> None:
    other = llama(tmp_path / "other", seed=1)
    with Calibration.open(stats) as found:
        found.check_model(small_llama)
        found.check_model(small_llama / "model.safetensors")
        with pytest.raises(qzc.InvalidArgumentError, match=r"another model .* run `qzc calibrate`"):
            found.check_model(other)


def test_the_fingerprint_is_of_names_dtypes_shapes_and_bytes(model_folder: Path, tmp_path: Path) -> None:
    weights = load_file(model_folder / "model.safetensors")
    known = fingerprint(model_folder)
    assert fingerprint(shard(model_folder, tmp_path / "sharded")) == known

    def changed(edit: Callable[[dict[str, NDArray[Any]]], object], metadata: dict[str, str] | None = None) -> str:
        copy = dict(weights)
        edit(copy)
        save_file(copy, tmp_path / "changed.safetensors", metadata)
        return fingerprint(tmp_path / "changed.safetensors")

    name = "model.norm.weight"
    norm = weights[name]
    assert changed(lambda w: None, {"made by": "a test"}) == known
    flipped = norm.copy()
    flipped.view(np.uint8)[5] ^= 1
    others = {
        changed(lambda w: w.update({name: flipped})),
        changed(lambda w: w.update({name: norm.reshape(1, -1)})),
        changed(lambda w: w.update({name: norm.view(np.int32)})),
        changed(lambda w: w.update({"another": w.pop(name)})),
        changed(lambda w: w.pop(name)),
    }
    assert len(others) == 5 and known not in others


def test_other_files_are_not_statistics(model_file: Path, stats: Path, tmp_path: Path) -> None:
    with pytest.raises(qzc.InvalidArgumentError, match="qzc calibrate"):
        Calibration.open(model_file)
    (tmp_path / "cut").write_bytes(stats.read_bytes()[:-1])
    with pytest.raises(qzc.TruncationError):
        Calibration.open(tmp_path / "cut")


@pytest.mark.parametrize(
    ("key", "value", "error"),
    [
        ("version", "2", qzc.UnsupportedError),
        ("tokens", "many", qzc.CorruptionError),
        ("tensors", "{", qzc.CorruptionError),
        ("tensors", "[]", qzc.CorruptionError),
        ("tensors", '{"a":["no.input",5]}', qzc.CorruptionError),
        ("tensors", '{"a":["x.input",0]}', qzc.CorruptionError),
        ("tensors", '{"a":"x.input"}', qzc.CorruptionError),
    ],
)
def test_damaged_metadata(key: str, value: str, error: type[Exception], tmp_path: Path) -> None:
    counts = dict.fromkeys(("tokens", "windows", "window_length"), "4")
    hashes = {"model_hash": "0" * 16, "text_hash": "0" * 16}
    metadata = {"format": "qzc-calibration", "version": "1", **hashes, **counts, "tensors": '{"a":["x.input",4]}'}
    arrays = {"x.input.power": np.ones(3, np.float32), "x.input.gram": np.ones(6, np.float32)}
    save_file(arrays, tmp_path / "good", metadata)
    with Calibration.open(tmp_path / "good") as found:
        assert found.tensors == ["a"] and found.gram("a") is not None
        with pytest.raises(qzc.CorruptionError, match=r"x\.input\.mean is missing"):
            found.mean("a")
    save_file(arrays, tmp_path / "bad", {**metadata, key: value})
    with pytest.raises(error):
        Calibration.open(tmp_path / "bad")


def test_matrices_of_another_size_are_refused(stats: Path, tmp_path: Path) -> None:
    arrays = load_file(stats)
    with Calibration.open(stats) as found:
        metadata, name = found.metadata, found.tensors[0]
        key = found.input_of(name)
    arrays[f"{key}.gram"] = arrays[f"{key}.gram"][:-1]
    save_file(arrays, tmp_path / "s", metadata)
    with Calibration.open(tmp_path / "s") as found, pytest.raises(qzc.CorruptionError, match="gram is F32"):
        found.gram(name)


# ---------------------------------------------------------------------------------------------------------------------
# What cannot be done, and the command


def test_models_and_texts_that_do_not_fit(small_llama: Path, ids: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "large.npy", np.full(500, 64, np.int64))
    for text, options, message in (
        (tmp_path / "large.npy", WINDOWS, "token id 64 is beyond the vocabulary of 64"),
        (ids, WindowOptions(2, 65), "takes up to 64 tokens"),
        (ids, WindowOptions(2, 3000), "not enough for one window"),
    ):
        with pytest.raises(qzc.InvalidArgumentError, match=message):
            calibrate(small_llama, [text], tmp_path / "s", CalibrateOptions(options, threads=1))
    (tmp_path / "text.txt").write_text("words")
    with pytest.raises(qzc.UnsupportedError, match="no tokenizer"):
        calibrate(small_llama, [tmp_path / "text.txt"], tmp_path / "s", OPTIONS)
    assert not (tmp_path / "s").exists()


def test_checkpoints_that_cannot_be_run(small_llama: Path, ids: Path, tmp_path: Path) -> None:
    with pytest.raises(qzc.InvalidArgumentError, match=r"config\.json"):
        shutil.copyfile(small_llama / "model.safetensors", tmp_path / "model.safetensors")
        calibrate(tmp_path / "model.safetensors", [ids], tmp_path / "s", OPTIONS)
    folder = Path(shutil.copytree(small_llama, tmp_path / "copy"))
    config = json.loads((folder / "config.json").read_text())
    for change, message in (
        ({"model_type": "unheard-of"}, "cannot read the config"),
        ({"model_type": "t5", "architectures": ["T5Model"]}, "encoder and decoder"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantized already"),
        ({"num_hidden_layers": 4}, r"needs the tensor 'model\.layers\.3"),
    ):
        (folder / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(qzc.UnsupportedError, match=message):
            calibrate(folder, [ids], tmp_path / "s", OPTIONS)
    packed = qzc.pack(small_llama, tmp_path / "packed").output
    with pytest.raises(qzc.UnsupportedError, match="original"):
        calibrate(packed, [ids], tmp_path / "s", OPTIONS)


def test_the_command(small_llama: Path, ids: Path, stats: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.safetensors"
    options = ("-o", output, "--windows", 11, "--window-length", 24, "-T", 1, "--sensitivity-windows", 0)
    done = ok("calibrate", small_llama, ids, *options)
    assert done.stdout == "" and "13 inputs of 22 tensors" in done.stderr
    assert "264 tokens are 6 for each of the 48 inputs" in done.stderr
    assert output.read_bytes() == stats.read_bytes()
    assert "already exists" in inside("calibrate", small_llama, ids, *options).error
    document = ok("calibrate", small_llama, ids, *options, "-f", "-q", "--diagonal", "--json").json
    assert (document["inputs"], document["tokens"], document["uncovered"]) == (13, 264, [])
    assert document["nbytes"] == output.stat().st_size
    assert inside("calibrate", small_llama, ids, *options, "-f", "--device", "nowhere").code == 2


def test_text_goes_through_the_tokenizer(model_folder: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Once there was a small model. " * 40)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_folder)
    np.save(tmp_path / "ids.npy", np.array(tokenizer(text.read_text(), add_special_tokens=False)["input_ids"]))
    reports = [
        calibrate(model_folder, [path], tmp_path / f"{path.name}.s", CalibrateOptions(WindowOptions(2, 32), threads=1))
        for path in (text, tmp_path / "ids.npy")
    ]
    assert reports[0].windows.hash == reports[1].windows.hash
    assert type(tokenizer).__name__ in reports[0].windows.tokenization
    assert load_file(reports[0].output).keys() == load_file(reports[1].output).keys()
