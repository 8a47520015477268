"""`qzc.bench`: how fast the coders are on the codes of a checkpoint, beside what else is installed and could do the job.

Introduces the rooms to each other: formats and quantize give a sample, codec and the rivals of analysis code it, and
analysis has them take turns.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib import metadata
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from .analysis.rivals import RIVALS, installed
from .analysis.speed import Race, Timing, take_turns
from .codec.chunks import CHUNK_CODES
from .codec.errors import InvalidArgumentError
from .codec.tensor import QuantizationArgs
from .contenders import Contender, Crew, our_contenders, rival_contender
from .quantize.select import Selection
from .sampling import SAMPLE_CODES, Sample, take_sample
from .threads import thread_count, thread_map
from .version import VERSION

SECONDS = 10.0


@dataclass(frozen=True)
class CoderSpeed:
    """One coder. bits_per_code: everything that it stores; None if it failed. encode, decode: None for what has no such direction.

    library: None for our own. cycles_per_code: core cycles to decode one code: best time x clock x threads. verified: what it decoded was compared
    with what was coded, before anything was timed; a coder that fails is not timed.
    """

    coder: str
    settings: str
    library: str | None
    bits_per_code: float | None
    encode: Timing | None
    decode: Timing | None
    codes: int
    threads: int
    clock_ghz: float
    verified: bool

    def codes_per_s(self, direction: str, which: str = "median") -> float | None:
        """Codes per second. direction: `encode` or `decode`; which: `median` or `best` of the runs."""
        timing = self.encode if direction == "encode" else self.decode
        if timing is None:
            return None
        return self.codes / (timing.best if which == "best" else timing.median)

    @property
    def cycles_per_code(self) -> float | None:
        return self.decode.best * self.clock_ghz * 1e9 * self.threads / self.codes if self.decode else None

    def to_json(self) -> dict[str, Any]:
        speeds = {
            f"{direction}_codes_per_s{'_best' if which == 'best' else ''}": self.codes_per_s(direction, which)
            for which in ("median", "best")
            for direction in ("encode", "decode")
        }
        return {
            "coder": self.coder,
            "settings": self.settings,
            "library": self.library,
            "bits_per_code": self.bits_per_code,
            **speeds,
            "cycles_per_code": self.cycles_per_code,
            "runs": self.decode.runs if self.decode else 0,
            "verified": self.verified,
        }


@dataclass(frozen=True)
class Bench:
    """The coders on one sample and one number of threads. entropy_bits: see `Sample`. missing: rivals not installed."""

    source: Path
    grids: tuple[QuantizationArgs, ...]
    threads: int
    sampled_codes: int
    sampled_chunks: int
    total_codes: int
    entropy_bits: float
    rows: tuple[CoderSpeed, ...]
    missing: tuple[str, ...]
    machine: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """A document of the schema `qzc.bench/1`; figures that do not exist are null."""
        return {
            "schema": "qzc.bench/1",
            "source": str(self.source),
            "grids": [asdict(grid) for grid in self.grids],
            "threads": self.threads,
            "sampled_codes": self.sampled_codes,
            "sampled_chunks": self.sampled_chunks,
            "total_codes": self.total_codes,
            "entropy_bits": self.entropy_bits,
            "rows": [row.to_json() for row in self.rows],
            "not_installed": list(self.missing),
            "machine": self.machine,
        }


def bench(
    path: str | Path,
    selection: Selection | None = None,
    *,
    threads: int = 1,
    seconds: float = SECONDS,
    sample_codes: int = SAMPLE_CODES,
    chunk_codes: int = CHUNK_CODES,
) -> Bench:
    """Measure on a `.safetensors` checkpoint, quantized as `pack` would, or on a `.qzc`; a file or a folder.

    threads: 0 for all CPUs. seconds: for timing; making the sample and compiling come on top. sample_codes: about how many
    codes are measured on. chunk_codes: as for `pack`.

    Raises InvalidArgumentError, FileAccessError, CorruptionError, UnsupportedError, and VerificationError if one of our own
    coders does not give back what it was given.
    """
    sample = take_sample(path, selection, sample_codes=sample_codes, chunk_codes=chunk_codes)
    return compare([sample], [threads], seconds)[0]


def compare(samples: Sequence[Sample], threads: Sequence[int], seconds: float) -> list[Bench]:
    """All coders on every sample with every number of threads, in one race: all figures can be compared.

    The result is in the order of the samples, and for each in the order of `threads`.
    """
    if not 0 < seconds < 1e6:
        raise InvalidArgumentError(f"{seconds} seconds: give a number above 0")
    counts = [thread_count(number) for number in threads]
    there, missing = installed(RIVALS)
    fields = [our_contenders(sample) + [rival_contender(rival, sample) for rival in there] for sample in samples]
    jobs: dict[tuple[int, int, int, str], tuple[Callable[[], object], ...]] = {}
    with ExitStack() as stack:
        maps = [stack.enter_context(thread_map(count)) for count in counts]
        for (s, field), (t, count) in product(enumerate(fields), enumerate(counts)):
            crew = Crew(_shares([block.packed.size for block in samples[s].blocks], count), maps[t])
            for c, contender in enumerate(field):
                if contender.encode:
                    jobs[s, t, c, "encode"] = contender.encode(crew)
                if contender.decode:
                    jobs[s, t, c, "decode"] = contender.decode(crew)
        race = take_turns(jobs, seconds)
    machine = _machine(race.clock_ghz)
    names = tuple(rival.name for rival in missing)
    return [
        Bench(
            sample.source,
            sample.grids,
            count,
            sample.codes,
            len(sample.blocks),
            sample.total_codes,
            sample.entropy_bits,
            tuple(_row(contender, race, (s, t, c), sample.codes, count) for c, contender in enumerate(fields[s])),
            names,
            machine,
        )
        for (s, sample), (t, count) in product(enumerate(samples), enumerate(counts))
    ]


def _row(contender: Contender, race: Race, key: tuple[int, int, int], codes: int, threads: int) -> CoderSpeed:
    return CoderSpeed(
        contender.name,
        contender.settings,
        contender.library,
        None if contender.nbytes is None else 8 * contender.nbytes / codes,
        race.timings.get((*key, "encode")),
        race.timings.get((*key, "decode")),
        codes,
        threads,
        race.clock_ghz,
        contender.verified,
    )


def _shares(sizes: Sequence[int], count: int) -> list[list[int]]:
    """Blocks by number, dealt to threads: the largest first, each to whoever has least."""
    shares: list[list[int]] = [[] for _ in range(count)]
    loads = [0] * count
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        least = loads.index(min(loads))
        shares[least].append(i)
        loads[least] += sizes[i]
    return [sorted(share) for share in shares if share]


def _machine(clock_ghz: float) -> dict[str, Any]:
    from .codec.ans import ANS16
    from .codec.kernels.select import batch_kernels

    return {
        "cpu": _cpu_name(),
        "cpus": os.cpu_count(),
        "clock_ghz": round(clock_ghz, 3),
        "system": platform.system(),
        "architecture": platform.machine(),
        "ans_kernels": batch_kernels()[ANS16.id].__module__.rpartition(".")[2],
        "python": platform.python_version(),
        "numpy": np.__version__,
        "numba": metadata.version("numba"),
        "qzc": VERSION,
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
