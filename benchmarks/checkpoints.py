"""Whole checkpoints without loss: a GPTQ model, other quantized layouts, quantized weights kept as floats, and fine-tuned models.

    python -m benchmarks.checkpoints MODEL.safetensors [--tuned A.safetensors B.safetensors ..] [--train FOLDER]
                                     [--ggml LIBRARY] [--seconds 60]

From the root of the project. The matrices of MODEL (as many columns as are a multiple of 128) are quantized and laid out as other
tools do it (`foreign.py`). All that is timed takes turns on one thread, after every file has
come back byte by byte; speeds are medians, the best run beside them in brackets. zstd reads and writes memory; qzc decodes from
the map of a .qzc file into fresh memory, checksums included.

--tuned: checkpoints, of which all pairs with equal names and sizes of tensors are packed against each other, the first as the base.
--train: a folder with a small causal language model, to be trained for a few steps (torch, transformers).
--ggml: a shared library with ggml's quantizers for the K types, such as `lib/basic/libctransformers.so` of ctransformers 0.2.27.
"""

from __future__ import annotations

import argparse
import gzip
import importlib
import itertools
import os
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
import zstandard
from numpy.typing import NDArray

import qzc
from benchmarks.foreign import MissingError, Weights, gptq, makers
from qzc.analysis.entropy import shannon_entropy
from qzc.analysis.speed import Race, take_turns
from qzc.base import BaseTensors
from qzc.codec.chunks import CHUNK_CODES
from qzc.codec.decoding import decode
from qzc.codec.histogram import nibble_counts
from qzc.codec.tensor import QuantizationArgs
from qzc.formats.dtypes import file_bytes
from qzc.formats.header import build_header
from qzc.formats.reader import Reader
from qzc.formats.safetensors import SafetensorsFile, place
from qzc.lossless import encode_lossless, plan_lossless
from qzc.quantize.rtn import quantize

FLOATS: dict[str, Any] = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--tuned", type=Path, nargs="+", default=[])
    parser.add_argument("--train", type=Path)
    parser.add_argument("--ggml", type=Path)
    parser.add_argument("--steps", type=int, default=20, help="of training")
    parser.add_argument("--seconds", type=float, default=60, help="for timing, each of two tables")
    options = parser.parse_args()
    weights = matrices(options.model)
    with tempfile.TemporaryDirectory() as folder:
        desk = Path(folder)
        print(f"## A GPTQ checkpoint: {options.model.name}, int4, symmetric, group 128\n")
        report_gptq(gptq(weights, fresh(desk / "gptq")), options.seconds)
        print("\n## Quantized layouts\n")
        report_layouts(weights, desk, options.ggml)
        print("\n## Quantized weights kept as floats\n")
        report_floats(weights, fresh(desk / "floats"))
        print("\n## Fine-tuned checkpoints against their base\n")
        found = list(pairs(options.tuned))
        if options.train:
            try:
                found += trained(options.train, fresh(desk / "trained"), options.steps)
            except ImportError as error:
                print(f"not trained: {error.name} is not installed\n")
        if found:
            report_pairs(found, fresh(desk / "pairs"), options.seconds)
        else:
            print("none: give --tuned or --train")


def matrices(path: Path) -> Weights:
    """Those that groups of 128 fit, by the name of their module; as many rows as all layouts take: a multiple of 8."""
    with SafetensorsFile(path) as file:
        found = {name: file.array(name) for name in file.keys() if file.info(name).dtype in ("F32", "F16", "BF16")}
        return {
            name.removesuffix(".weight"): array[: len(array) // 8 * 8].astype(np.float32)
            for name, array in found.items()
            if array.ndim == 2 and array.shape[1] % 128 == 0 and len(array) >= 8
        }


def report_gptq(folder: Path, seconds: float) -> None:
    packed = pack_checked(folder, folder.with_name("gptq-qzc"))
    coded = {tensor.name: tensor.sizes.lossless for tensor in qzc.stats(packed, threads=1).tensors}
    with Reader(packed / "model.qzc.safetensors") as reader:
        names = [name for name in reader.keys() if name.endswith("qweight")]
        words = {name: reader.raw(name) for name in names}
        largest = max(names, key=lambda name: words[name].size)
        zstd, unzstd = zstandard.ZstdCompressor(level=1), zstandard.ZstdDecompressor()
        payloads = {name: zstd.compress(words[name].data) for name in names}
        jobs: dict[tuple[str, str], tuple[Callable[[], object], ...]] = {}
        sizes: dict[tuple[str, str], int] = {}
        sets = {f"all {len(names)} matrices": names, "the largest": [largest]}
        for what, chosen in sets.items():
            jobs[what, "qzc"] = (partial(read_all, reader, chosen),)
            jobs[what, "zstd -1"] = (partial(apply, unzstd.decompress, [payloads[name] for name in chosen]),)
            jobs[what, "memcpy"] = (partial(apply, np.copy, [words[name] for name in chosen]),)
            lossless = [coded[name] for name in chosen]
            sizes[what, "qzc"] = sum(one.coded.nbytes for one in lossless if one)
            sizes[what, "zstd -1"] = sum(len(payloads[name]) for name in chosen)
            sizes[what, "memcpy"] = sum(words[name].size for name in chosen)
        race = take_turns(jobs, seconds)
        print("| qweight | codec | bits per code | over entropy | decode Gcodes/s | cycles per code |")
        print("|---|---|---|---|---|---|")
        for (what, name), nbytes in sizes.items():
            codes = 2 * sizes[what, "memcpy"]
            counts = (nibble_counts(words[matrix]) for matrix in sets[what])
            entropy = sum(int(each.sum()) * shannon_entropy(each) for each in counts)
            over = f"{100 * (8 * nbytes / entropy - 1):+.3f} %"
            print(
                f"| {what} | {name} | {8 * nbytes / codes:.4f} | {over} | {speed(race, (what, name), codes)}", end=" | "
            )
            print(f"{race.timings[what, name].best * race.clock_ghz * 1e9 / codes:.2f} |")
    print("\nThe entropy is that of the codes of each matrix; sizes have payloads, gaps, tables and rows of the index.")
    print(f"One thread, {race.clock_ghz:.2f} GHz; cycles are those of the best run.")


def report_layouts(weights: Weights, desk: Path, ggml: Path | None) -> None:
    print("| layout | MB | ratio: qzc | order-0 bound | `zstd -3` |\n|---|---|---|---|---|")
    missing: dict[str, list[str]] = {}
    for number, (name, make) in enumerate(makers(ggml)):
        folder = fresh(desk / f"layout{number}")
        try:
            source = make(weights, folder)
        except MissingError as error:
            missing.setdefault(str(error), []).append(name)
            continue
        packed = pack_checked(source, desk / f"packed{number}{source.suffix and '.qzc'}")
        files = [path for path in folder.iterdir() if path.suffix in (".safetensors", ".gguf")]
        total = sum(path.stat().st_size for path in files)
        ours = sum(path.stat().st_size for path in ([packed] if packed.is_file() else packed.glob("*.safetensors")))
        zstd = sum(len(zstandard.ZstdCompressor(level=3).compress(path.read_bytes())) for path in files)
        tensors = qzc.stats(packed, threads=1).tensors
        bound = sum(t.sizes.lossless.entropy_bits / 8 if t.sizes.lossless else t.sizes.stored_nbytes for t in tensors)
        cells = [f"{total / nbytes:.4f}" for nbytes in (ours, bound, zstd)]
        print(f"| {name} | {total / 1e6:.2f} | {' | '.join(cells)} |", flush=True)
    print("\nWhole files. The bound has neither headers nor indices, and tensors that are not coded in full.")
    for library, names in missing.items():
        print(f"\nnot here: {library}, so without {', '.join(names)}")


def report_floats(weights: Weights, desk: Path) -> None:
    """Rounded to a grid and back, as simulated quantization and converters leave them."""
    print(
        "| dtype, scales | bits per weight: qzc | as other floats | entropy of the codes | `zstd -3` |\n|---|---|---|---|---|"
    )
    total = sum(weight.size for weight in weights.values())
    for group, dtype in itertools.product((None, 128), FLOATS):
        strategy: Literal["channel", "group"] = "channel" if group is None else "group"
        scale_dtype: Literal["float32", "float16"] = "float32" if dtype == "F32" else "float16"
        args = QuantizationArgs(4, True, strategy, group, "absmax", scale_dtype)
        tensors = {name: quantize(weight, args, "F32") for name, weight in weights.items()}
        arrays = {name: tensor.dequantize(np.float32).astype(FLOATS[dtype]) for name, tensor in tensors.items()}
        path = desk / f"{strategy}-{dtype}.safetensors"
        members = place((name, dtype, array.shape, array.nbytes) for name, array in arrays.items())
        path.write_bytes(
            build_header({}, members, reserve=0) + b"".join(file_bytes(a).tobytes() for a in arrays.values())
        )
        ours = pack_checked(path, path.with_suffix(".qzc")).stat().st_size
        counts = [nibble_counts(tensor.packed) for tensor in tensors.values()]
        entropy = sum(int(each.sum()) * shannon_entropy(each) for each in counts)
        others = 0
        for array in arrays.values():
            data = file_bytes(array)
            plan = plan_lossless(data, dtype)  # nothing is known of rows
            others += encode_lossless(data, plan, "ans", CHUNK_CODES, verify=False)[0].nbytes if plan else data.size
        zstd_nbytes = len(zstandard.ZstdCompressor(level=3).compress(path.read_bytes()))
        cells = [f"{bits / total:.3f}" for bits in (8 * ours, 8 * others, entropy, 8 * zstd_nbytes)]
        print(f"| {dtype}, one for {f'{group} weights' if group else 'a row'} | {' | '.join(cells)} |", flush=True)
    print("\nInt4, symmetric. Sizes are those of whole files with scales and headers; the entropy has only the codes.")


def pairs(files: list[Path]) -> Iterator[tuple[str, Path, Path]]:
    """All pairs of checkpoints with the same tensors: what it is, the base, the other."""
    described = {path: describe(path) for path in files}
    for base, tuned in itertools.combinations(files, 2):
        if described[base] == described[tuned]:
            yield f"{tuned.stem} against {base.stem}", base, tuned


def describe(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    with SafetensorsFile(path) as file:
        return {name: (file.info(name).dtype, file.info(name).shape) for name in file.keys()}


def trained(source: Path, desk: Path, steps: int) -> Iterator[tuple[str, Path, Path]]:
    """The model of a folder and what some steps of AdamW make of it, on the documents of this project: in F32 and in BF16."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch: Any = importlib.import_module("torch")
    transformers: Any = importlib.import_module("transformers")
    save_file: Any = importlib.import_module("safetensors.torch").save_file

    torch.manual_seed(0)
    torch.set_num_threads(1)
    model, tokenizer = (
        transformers.AutoModelForCausalLM.from_pretrained(source),
        transformers.AutoTokenizer.from_pretrained(source),
    )
    text = "".join(path.read_text("utf-8") for path in sorted(Path("docs").glob("*.md")))
    tokens = torch.tensor(tokenizer(text).input_ids)
    versions: list[dict[str, Any]] = [{name: value.detach().clone() for name, value in model.named_parameters()}]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    model.train()
    for step in range(steps):
        place = step * 1024 % (len(tokens) - 1024)
        batch = tokens[place : place + 1024].reshape(8, 128)
        optimizer.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
    versions.append({name: value.detach() for name, value in model.named_parameters()})
    for dtype in ("float32", "bfloat16"):
        paths = desk / f"base-{dtype}.safetensors", desk / f"tuned-{dtype}.safetensors"
        for path, state in zip(paths, versions, strict=True):
            save_file({name: value.to(getattr(torch, dtype)).contiguous() for name, value in state.items()}, path)
        yield f"{source.name}, {steps} steps, {dtype}", *paths


def report_pairs(found: list[tuple[str, Path, Path]], desk: Path, seconds: float) -> None:
    jobs: dict[tuple[str, str, str], tuple[Callable[[], object], ...]] = {}
    sizes: dict[tuple[str, str], int] = {}
    opened: list[Any] = []
    for number, (title, base, tuned) in enumerate(found):
        alone, delta, whole = desk / f"{number}-alone.qzc", desk / f"{number}-delta.qzc", tuned.read_bytes()
        lossless, against = (qzc.PackOptions(lossless=True, base=b, threads=1, overwrite=True) for b in (None, base))
        for path, options in ((alone, lossless), (delta, against)):
            qzc.pack(tuned, path, options)
            qzc.unpack(path, desk / "again.safetensors", base=options.base, threads=1, overwrite=True)
            check((desk / "again.safetensors").read_bytes() == whole, path)
            jobs[title, path.stem[2:], "encode"] = (partial(qzc.pack, tuned, desk / "timed.qzc", options),)
        tensors = BaseTensors(base)
        for path, theirs in ((alone, None), (delta, tensors.tensor)):
            reader = Reader(path, theirs)
            names = reader.keys()
            jobs[title, path.stem[2:], "decode"] = (partial(read_all, reader, names),)
            opened += [reader, tensors]
        sizes[title, "file"], sizes[title, "alone"], sizes[title, "delta"] = (
            path.stat().st_size for path in (tuned, alone, delta)
        )
        sizes[title, "gzip -6"] = len(gzip.compress(whole, 6))
        for rival, codec in (("zstd -3", zstd(3)), ("zstd -3 --patch-from", zstd(3, base.read_bytes()))):
            payload = codec[0](whole)
            check(codec[1](payload) == whole, rival)
            sizes[title, rival] = len(payload)
            jobs[title, rival, "encode"], jobs[title, rival, "decode"] = (
                (partial(codec[0], whole),),
                (partial(codec[1], payload),),
            )
    race = take_turns(jobs, seconds)
    print("| pair | how | bytes | of the file | encode MB/s | decode MB/s |\n|---|---|---|---|---|---|")
    for (title, how), nbytes in sizes.items():
        total, cells = sizes[title, "file"], []
        for what in ("encode", "decode"):
            timing = race.timings.get((title, how, what))
            cells.append(f"{total / timing.median / 1e6:.0f}" if timing else "")
        name = {"alone": "qzc alone", "delta": "**qzc --base**", "file": "as it is"}.get(how, how)
        print(
            f"| {title if how == 'file' else ''} | {name} | {nbytes:,} | {nbytes / total:.4f} | {' | '.join(cells)} |"
        )
    print("\nqzc's encode is `qzc pack` from file to file, all of it verified by reading it again.")
    for one in opened:
        one.close()


def zstd(level: int, base: bytes | None = None) -> tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]:
    """As the tool: with a base it is a dictionary, in a window that has room for both."""
    if base is None:
        return zstandard.ZstdCompressor(level=level).compress, zstandard.ZstdDecompressor().decompress
    prefix = zstandard.ZstdCompressionDict(base, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    log = min(zstandard.WINDOWLOG_MAX, (2 * len(base)).bit_length() + 1)
    settings = zstandard.ZstdCompressionParameters.from_level(level, window_log=log, enable_ldm=True)
    compressor = zstandard.ZstdCompressor(compression_params=settings, dict_data=prefix)
    return compressor.compress, zstandard.ZstdDecompressor(prefix, max_window_size=1 << log).decompress


def pack_checked(source: Path, target: Path) -> Path:
    """The checkpoint in qzc's own format, after it has come back byte by byte."""
    qzc.pack(source, target, qzc.PackOptions(lossless=True, threads=1))
    again = target.with_suffix(".again")
    qzc.unpack(target, again, threads=1)
    for path in [source] if source.is_file() else source.iterdir():
        back = again if source.is_file() else again / path.name
        check(back.read_bytes() == path.read_bytes(), path)
    return target


def check(same: bool, what: object) -> None:
    if not same:
        raise SystemExit(f"{what} does not come back as it was")


def read_all(reader: Reader, names: list[str]) -> list[NDArray[Any]]:
    return decode(reader.array_decoding(name) for name in names)


def apply(function: Callable[[Any], object], arguments: list[Any]) -> None:
    for argument in arguments:
        function(argument)


def speed(race: Race, key: tuple[str, str], codes: int) -> str:
    timing = race.timings[key]
    return f"{codes / timing.median / 1e9:.2f} ({codes / timing.best / 1e9:.2f})"


def fresh(folder: Path) -> Path:
    folder.mkdir()
    return folder


if __name__ == "__main__":
    main()
