"""Sums, ratios and JSON of the statistics, on numbers that can be checked by hand."""

import json
from dataclasses import replace

import numpy as np
import pytest

from qzc.analysis.code_stats import CodedSize, CodeStats, LosslessStats
from qzc.analysis.distortion import Distortion
from qzc.analysis.float_fields import count_words, float_fields
from qzc.analysis.tensor_stats import Sizes, TensorStats, totals
from qzc.codec.tensor import QuantizationArgs

ARGS = QuantizationArgs()
CODES = CodeStats(
    args=ARGS,
    count=1000,
    levels=16,
    levels_used=15,
    level_bits=4000.0,
    entropy_bits=3000.0,
    packed_nbytes=500,
    packed_zstd_nbytes=390,
    coded={"huffman": CodedSize(380, 32, 128, 4, ("huffman",)), "ans": CodedSize(376, 32, 16, 8, ("ans16",))},
    scale=CodedSize(16),
    zero_point=CodedSize(4, 32, 0, 12, ("raw",)),
    distortion=Distortion(1000.0, 10.0),
)
CODED = TensorStats("a", "F32", (10, 100), Sizes(1000, 4000, 432 + 16 + 48, 3600, 3500, CODES))
UNCODED = TensorStats("b", "F32", (50,), Sizes(50, 200, 200, 190, 195), "1-D")


def test_figures_of_a_coded_tensor() -> None:
    assert CODES.final.nbytes == 376 + 32 + 16 + 8
    assert CODES.side_nbytes == 16 + 48
    assert CODES.coded_bits("ans") == 8 * 432 / 1000
    assert CODES.coded_bits("huffman") == 8 * 544 / 1000
    assert CODES.coded_bits("file") is None
    assert CODES.packed_zstd_bits == 8 * 390 / 1000
    assert CODES.snr_db == pytest.approx(20.0)
    assert CODED.sizes.bits_per_weight == 8 * 496 / 1000
    assert CODED.sizes.ratio == CODED.sizes.ratio_to_fp32 == 4000 / 496
    assert CODED.sizes.ratio_to_fp16 == 2000 / 496
    # Between 0 at 4 bits and 1 at H0 = 3 bits.
    assert CODES.efficiency(500) == 0.0 and CODES.efficiency(375) == 1.0
    assert CODES.efficiency(432) == pytest.approx((4 - 8 * 432 / 1000) / 1)
    assert CODES.efficiency(None) is None and replace(CODES, count=0).efficiency(1) is None
    assert CODED.sizes.gzip_ratio == 4000 / 3600


def test_what_a_file_holds_is_what_counts() -> None:
    assert replace(CODES, coded={"file": CodedSize(1), **CODES.coded}).final == CodedSize(1)


def test_totals_add_up() -> None:
    other = replace(CODES, count=3000, entropy_bits=1000.0, level_bits=12000.0, distortion=Distortion(0.0, 90.0))
    second = TensorStats("c", "F32", (30, 100), replace(CODED.sizes, parameters=3000, nbytes=12000, codes=other))
    total = totals([CODED, UNCODED, second])
    codes = total.sizes.codes
    assert codes is not None
    assert (total.tensors, total.coded_tensors, total.sizes.parameters, total.sizes.nbytes) == (3, 2, 4050, 16200)
    # Every code weighs the same: 3 bits for a quarter of them, 1/3 bit for the others.
    assert codes.per_code(codes.entropy_bits) == 4000 / 4000
    assert codes.snr_db == pytest.approx(10.0)
    assert total.sizes.gzip_nbytes == 3600 + 190 + 3600
    assert total.sizes.stored_nbytes == sum(total.parts.values()) == 496 + 200 + 496
    assert total.parts["uncoded"] == 200
    assert total.parts["payload"] == 2 * (376 + 4)  # of the codes and of the zero points


def test_a_file_s_overhead_counts_and_its_banks_replace_the_tables_of_tensors() -> None:
    total = totals([CODED, UNCODED], {"header": 1024, "tables": 48, "checksums": 24})
    assert total.parts["tables"] == 48
    assert total.sizes.stored_nbytes == 496 - 16 + 200 + 1024 + 48 + 24


def test_second_names_do_not_count() -> None:
    tied = TensorStats("z", "F32", (10, 100), Sizes(1000, 4000, 0), "", tied_to="a")
    assert totals([CODED, UNCODED, tied]) == totals([CODED, UNCODED])


def test_what_is_not_known_of_one_is_not_known_of_all() -> None:
    blind = TensorStats(
        "c", "F32", (10, 100), replace(CODED.sizes, gzip_nbytes=None, codes=replace(CODES, distortion=None))
    )
    total = totals([CODED, blind]).sizes
    assert total.gzip_nbytes is None and total.gzip_ratio is None and total.zstd_nbytes == 7000
    assert total.codes is not None and total.codes.snr_db is None


def test_mixed_grids_have_no_common_levels() -> None:
    three = replace(CODES, args=replace(ARGS, num_bits=3), levels=8, level_bits=3000.0)
    total = totals([CODED, replace(CODED, sizes=replace(CODED.sizes, codes=three))]).sizes.codes
    assert total is not None
    assert total.args is None and total.levels is None
    assert total.per_code(total.level_bits) == 3.5


def test_nothing_at_all() -> None:
    total = totals([])
    assert total.sizes.codes is None
    assert (total.sizes.bits_per_weight, total.sizes.ratio, total.sizes.gzip_ratio) == (None, None, None)
    json.dumps(total.sizes.coded_json(), allow_nan=False)


@pytest.mark.parametrize("distortion", [None, Distortion(1.0, 0.0), Distortion(0.0, 1.0), Distortion(0.0, 0.0)])
def test_json_has_no_infinity(distortion: Distortion | None) -> None:
    document = replace(CODES, distortion=distortion).to_json()
    assert document["snr_db"] is None
    json.dumps(document, allow_nan=False)
    assert document["error_energy"] == (distortion.error_energy if distortion else None)


def test_json_sizes_are_exact_integers() -> None:
    document = json.loads(json.dumps(CODED.sizes.before_json() | CODED.sizes.coded_json()))
    ans = document["codes"]["coded"]["ans"]
    parts = ("payload_nbytes", "index_nbytes", "table_nbytes", "gap_nbytes")
    assert ans["nbytes"] == sum(ans[part] for part in parts) == 432
    sizes = [document[key] for key in document if key.endswith("nbytes")]
    assert len(sizes) == 4 and all(type(size) is int for size in sizes)


def test_a_sample_is_scaled_up() -> None:
    twice = CODES.scaled(2.0)
    assert (twice.count, twice.final.nbytes, twice.side_nbytes) == (2000, 2 * 432, 2 * 64)
    assert twice.snr_db == CODES.snr_db and twice.coded_bits("ans") == CODES.coded_bits("ans")
    assert twice.efficiency(twice.final.nbytes) == CODES.efficiency(CODES.final.nbytes)
    assert CODES.scaled(1.0) is CODES and replace(CODES, distortion=None).scaled(0.5).distortion is None


def test_lossless_tensors_add_up() -> None:
    weights = np.random.default_rng(0).standard_normal(500).astype(np.float32)
    fields = float_fields(count_words(weights.view(np.uint8), "F32"), "F32")
    one = LosslessStats(500, ((8, 500), (8, 1500)), 13_000.0, CodedSize(1700, 48, 16, 12, ("ans16", "raw")), fields)
    bare = LosslessStats(100, ((4, 100),), 300.0, CodedSize(40, 24, 16))
    total = totals(
        [
            TensorStats("f", "F32", (500,), Sizes(500, 2000, one.coded.nbytes, lossless=one), "lossless"),
            TensorStats("i", "I32", (100,), Sizes(100, 400, bare.coded.nbytes, lossless=bare), "lossless"),
            UNCODED,
        ],
        {"header": 8},
    )
    both = total.sizes.lossless
    assert both is not None and both.entropy == 13_300 / 600 and both.coded.nbytes == 1776 + 80
    assert both.fields == fields and sum(fields.by_kind.values()) == pytest.approx(fields.bits)
    assert list(fields.by_kind) == ["sign", "exponent", "mantissa"]
    assert total.sizes.stored_nbytes == sum(total.parts.values()) == 1776 + 80 + 200 + 8
    assert total.parts["lossless"] == 1740 and total.sizes.codes is None and total.coded_tensors == 0
    json.dumps(total.sizes.coded_json(), allow_nan=False)
