"""What each method makes of a real model at given rates: bits as coded, every side bit counted, and the harm done.

    python benchmarks/rate_methods.py MODEL_FOLDER --calibrate TRAIN --test TEST [--rates 2 3] [--methods rtn-ec
    watersic]

Needs torch and transformers. TRAIN and TEST are texts, or `FILE.npz:ARRAY` of token ids. Harm of a causal language
model: mean KL divergence to the original's next-token distribution, and perplexity; of an encoder: 1 - cosine of the
mean-pooled embedding. All linear layers inside of the blocks are quantized. Sensitivities are measured on the
calibration text: the harm done by each layer alone, quantized to `--trial-rate` bits.

`*` behind a method: one step for the whole model, weighed by sensitivity; without it every layer has the same rate.
`watersic-row` has row steps from gradients besides. `trellis-8*` .. are `watersic*` with so many states.
"""

from __future__ import annotations

import argparse
import importlib
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qzc.codec.class_coder import encode_rows, encode_side
from qzc.codec.rate_tensor import reconstruct
from qzc.codec.tensor import QuantizationArgs, Strategy
from qzc.quantize.allocate import equal_slope, measured_sensitivity
from qzc.quantize.diag import diag
from qzc.quantize.gptq import gptq
from qzc.quantize.gptq_ec import gptq_ec
from qzc.quantize.hessian import factorize
from qzc.quantize.rate import Rated, solve, vectors_of
from qzc.quantize.rtn_ec import rtn_ec
from qzc.quantize.unbounded import Design
from qzc.quantize.watersic import watersic

torch: Any = importlib.import_module("torch")
transformers: Any = importlib.import_module("transformers")

METHODS = (
    "gptq-row gptq-g128 rtn-ec diag gptq-ec watersic rtn-ec* watersic* trellis-8 trellis-8* trellis-32* trellis-256*"
)
FIXED: dict[str, tuple[Strategy, int | None]] = {"gptq-row": ("channel", None), "gptq-g128": ("group", 128)}
Weights = dict[str, NDArray[np.float32]]


class Harm(NamedTuple):
    """What a quantized model does. error: half the width of the 95 % interval of `value`."""

    value: float
    error: float
    perplexity: float


class Model:
    """A model of transformers whose linear layers can be exchanged."""

    def __init__(self, folder: Path, window: int) -> None:
        architectures = transformers.AutoConfig.from_pretrained(folder).architectures or [""]
        self.causal = "CausalLM" in architectures[0]
        kind = transformers.AutoModelForCausalLM if self.causal else transformers.AutoModel
        self.net = kind.from_pretrained(folder, dtype=torch.float32).eval()
        self.folder, self.window = folder, window
        self.layers: dict[str, Any] = {
            name: part
            for name, part in self.net.named_modules()
            if isinstance(part, torch.nn.Linear) and any(piece.isdigit() for piece in name.split("."))
        }
        self.original = {name: layer.weight.detach().clone() for name, layer in self.layers.items()}

    def tokens(self, source: str, windows: int) -> Any:
        """[windows, window] token ids, evenly spread over a text or the first of an array."""
        path, _, array = source.partition(".npz:")
        if array:
            flat = np.load(f"{path}.npz")[array][: windows * self.window].astype(np.int64)
            return torch.tensor(flat.reshape(-1, self.window))
        tokenizer = transformers.AutoTokenizer.from_pretrained(self.folder)
        text = Path(source).read_text(encoding="utf-8")[: 60 * windows * self.window]
        ids = np.array(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        body = self.window if self.causal else self.window - 2
        rows = ids[: len(ids) // body * body].reshape(-1, body)
        rows = rows[:: max(1, len(rows) // windows)][:windows]
        if not self.causal:
            ends = ((0, 0), (tokenizer.cls_token_id, tokenizer.sep_token_id))
            rows = np.pad(rows, ((0, 0), (1, 1)), constant_values=ends)
        return torch.tensor(rows)

    def output(self, ids: Any) -> Any:
        """Log-probabilities of next tokens, or unit embeddings."""
        if self.causal:
            return torch.log_softmax(self.net(ids, use_cache=False).logits[:, :-1], -1)
        pooled = self.net(ids).last_hidden_state.mean(1)
        return pooled / pooled.norm(dim=1, keepdim=True)

    def exchange(self, weights: Weights) -> None:
        for name, layer in self.layers.items():
            layer.weight.data = torch.from_numpy(weights[name]) if name in weights else self.original[name]

    def judge(self, ids: Any) -> Callable[[Weights], Harm]:
        """A function that says what weights do to the model on these tokens."""
        self.exchange({})
        with torch.no_grad():
            reference = [self.output(part).half() for part in ids.split(8)]

        def harm(weights: Weights) -> Harm:
            self.exchange(weights)
            each, surprise = [], []
            with torch.no_grad():
                for part, known in zip(ids.split(8), reference, strict=True):
                    out, known = self.output(part), known.float()
                    if self.causal:
                        each.append((known.exp() * (known - out)).sum(-1).mean(-1))
                        surprise.append(-out.gather(-1, part[:, 1:, None]).mean())
                    else:
                        each.append(1 - (out * known).sum(1) / known.norm(dim=1))
            values = torch.cat(each)
            perplexity = math.exp(float(torch.stack(surprise).mean())) if surprise else math.nan
            return Harm(float(values.mean()), 1.96 * float(values.std()) / math.sqrt(len(values)), perplexity)

        return harm

    def statistics(self, ids: Any) -> tuple[dict[str, NDArray[np.float64]], dict[str, NDArray[np.float64]]]:
        """(Gram matrix of the inputs, mean square of the gradient by output) of every layer.

        The gradient is of log-probabilities of sampled tokens, or of random projections of the embedding: their mean
        square is the curvature of the harm.
        """
        self.exchange({})
        grams: dict[str, Any] = {}
        squares: dict[str, Any] = {}

        def forward(name: str, inputs: Any) -> None:
            x = inputs[0].detach().reshape(-1, inputs[0].shape[-1])
            grams[name] = grams.get(name, 0) + (x.T @ x).double()

        def backward(name: str, gradient: Any) -> None:
            g = gradient[0].detach().reshape(-1, gradient[0].shape[-1])
            squares[name] = squares.get(name, 0) + (g * g).sum(0).double()

        hooks = []
        for name, layer in self.layers.items():
            hooks.append(layer.register_forward_pre_hook(lambda _, x, name=name: forward(name, x)))
            hooks.append(layer.register_full_backward_hook(lambda _, __, g, name=name: backward(name, g)))
        torch.manual_seed(0)
        for part in ids.split(8):
            out = self.output(part)
            if self.causal:
                sampled = torch.distributions.Categorical(logits=out.detach()).sample()
                out.gather(-1, sampled[..., None]).sum().backward()
            else:
                (out * torch.randn_like(out)).sum().backward()
            self.net.zero_grad()
        for hook in hooks:
            hook.remove()
        count = ids.numel()
        return {n: (g / count).numpy() for n, g in grams.items()}, {n: (s / count).numpy() for n, s in squares.items()}


class Bench:
    def __init__(self, model: Model, calibration: Any, trial_rate: float) -> None:
        self.weights = {name: value.numpy() for name, value in model.original.items()}
        self.grams, self.gradients = model.statistics(calibration)
        first: dict[bytes, str] = {}  # layers with one input share its factor, and so their column steps
        owner = {name: first.setdefault(gram.tobytes(), name) for name, gram in self.grams.items()}
        natural = {name: factorize(self.grams[name]) for name in first.values()}
        active = {name: factorize(self.grams[name], order="activation") for name in first.values()}
        self.natural = {name: natural[owner[name]] for name in self.weights}
        self.active = {name: active[owner[name]] for name in self.weights}
        harm = model.judge(calibration[:: max(1, len(calibration) // 48)])
        rated = solve([self.design("watersic", name) for name in self.weights], trial_rate, uniform=True)
        self.sensitivities: dict[str, float] = {}
        for name, tensor, loss in zip(self.weights, rated.tensors, rated.losses, strict=True):
            self.sensitivities[name] = measured_sensitivity(harm({name: reconstruct(tensor)}).value, loss)

    def design(self, method: str, name: str) -> Design:
        w, factor = self.weights[name], self.natural[name]
        method, _, states = (
            method.removesuffix("*").partition("-") if "trellis" in method else (method.rstrip("*"), "", "0")
        )
        if method == "rtn-ec":
            return rtn_ec(w, "F32", name=name)
        if method == "diag":
            return diag(w, "F32", np.diag(self.grams[name]), name=name)
        if method == "gptq-ec":
            return gptq_ec(w, "F32", self.active[name], name=name)
        rows = None
        if method == "watersic-row":
            gradient = self.gradients[name]
            rows = np.maximum(gradient / gradient.mean(), 1e-3) * self.sensitivities[name]
        return watersic(w, "F32", factor, sensitivity=rows, states=int(states), name=name)

    def rated(self, method: str, rate: float) -> Rated:
        designs = [self.design(method, name) for name in self.weights]
        if method.endswith("*") and "row" not in method:
            power = [self.sensitivities[design.name] for design in designs]
            if designs[0].factor is None:  # its errors are in the weights: as many as the inputs' power makes of them
                power = [
                    s * float(np.trace(self.grams[d.name])) / d.weights.shape[1]
                    for s, d in zip(power, designs, strict=True)
                ]
            designs = equal_slope(designs, power)
        return solve(designs, rate, uniform=not method.endswith("*"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibrate", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--rates", type=float, nargs="+", default=[2.0, 3.0])
    parser.add_argument("--methods", nargs="+", default=METHODS.split())
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--calibration-windows", type=int, default=200)
    parser.add_argument("--test-windows", type=int, default=200)
    parser.add_argument("--trial-rate", type=float, default=2.0)
    options = parser.parse_args()
    model = Model(options.model, options.window)
    began = perf_counter()
    bench = Bench(model, model.tokens(options.calibrate, options.calibration_windows), options.trial_rate)
    print(f"calibration and sensitivities: {perf_counter() - began:.0f} s\n")
    harm = model.judge(model.tokens(options.test, options.test_windows))
    count = sum(w.size for w in bench.weights.values())
    print("| method | bits/weight | of it side + tables | harm | +- | perplexity | s |\n|---|---|---|---|---|---|---|")
    print("| " + " | ".join(["original", "32", "", "0", "", f"{harm({}).perplexity:.3f}", ""]) + " |")
    for rate in options.rates:
        for method in options.methods:
            began = perf_counter()
            rebuilt: Weights = {}
            if method in FIXED:
                strategy, group = FIXED[method]
                args = replace(QuantizationArgs(), num_bits=round(rate), strategy=strategy, group_size=group)
                side = 0
                for name, w in bench.weights.items():
                    tensor = gptq(w, args, "F32", bench.active[name], name=name)
                    rebuilt[name] = np.asarray(tensor.dequantize())
                    side += 16 * tensor.scale.size
                bits, extra = round(rate) + side / count, side / count
            else:
                rated = bench.rated(method, rate)
                # What was coded, not what was estimated.
                codes = sum(8 * len(encode_rows(tensor, rated.bank)) for tensor in rated.tensors)
                side = 8 * len(encode_side(vectors_of(rated.tensors), rated.bank)) + 8 * len(rated.bank.to_bytes())
                bits, extra = (codes + side + rated.bits.records) / count, (side + rated.bits.records) / count
                rebuilt = {n: reconstruct(t) for n, t in zip(bench.weights, rated.tensors, strict=True)}
            spent, found = perf_counter() - began, harm(rebuilt)
            cells = [method, f"{bits:.4f}", f"{extra:.4f}", f"{found.value:.5f}", f"{found.error:.5f}"]
            print("| " + " | ".join([*cells, f"{found.perplexity:.3f}", f"{spent:.1f}"]) + " |", flush=True)


if __name__ == "__main__":
    main()
