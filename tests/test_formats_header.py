"""The header parser: every defect has its own one-line error, and no bytes at all lead to anything but a QzcError."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError

from qzc.codec.errors import CorruptionError, FileAccessError, InvalidArgumentError, QzcError, TruncationError
from qzc.formats.dtypes import DTYPE_BITS
from qzc.formats.header import Header, Member, build_header, read_file_header, read_header
from tests.malformed import GOOD, MALFORMED, Malformed, entry, file_of

ROOT = Path(__file__).parent.parent
deserialize: Callable[[bytes], list[tuple[str, dict[str, Any]]]] = safetensors.deserialize  # which has no types
CASES = [pytest.param(case, id=case.name) for case in MALFORMED.values()]


def parse(data: bytes) -> Header:
    return read_header(data, len(data), "model.safetensors")


@pytest.mark.parametrize("case", CASES)
def test_malformed(case: Malformed) -> None:
    with pytest.raises(CorruptionError) as caught:
        parse(case.data)
    message = str(caught.value)
    assert message.startswith("model.safetensors: ") and case.message in message
    assert "\n" not in message and len(message) < 300
    assert isinstance(caught.value, TruncationError) == case.truncated


@pytest.mark.parametrize("case", CASES)
def test_malformed_from_a_stream(case: Malformed) -> None:
    with pytest.raises(CorruptionError) as caught:
        read_header(io.BytesIO(case.data), len(case.data), "x")
    assert case.message in str(caught.value)


@pytest.mark.parametrize("case", CASES)
def test_the_library_agrees(case: Malformed) -> None:
    if case.library:
        with pytest.raises(SafetensorError):
            deserialize(case.data)
    else:
        deserialize(case.data)  # stricter than the library by intent: what it accepts here has no one meaning


def test_bad_fixtures_are_what_the_script_makes(fixtures: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(ROOT / "fixtures" / "make_bad.py"), str(tmp_path)], check=True)
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(made) == len(MALFORMED) > 50
    assert made == {path.name: path.read_bytes() for path in (fixtures / "bad").glob("*.safetensors")}


def test_valid_file() -> None:
    header = parse(GOOD)
    assert header == Header({"format": "pt"}, {"w": Member("w", "F32", (2, 3), 0, 24)}, len(GOOD) - 24)
    assert header.members["w"].nbytes == 24


def test_only_the_header_is_read(tmp_path: Path) -> None:
    class Counting(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            assert size is not None and 0 <= self.tell() + size <= len(GOOD) - 24
            return super().read(size)

    assert read_header(Counting(GOOD), len(GOOD), "x") == parse(GOOD)


@pytest.mark.parametrize(
    "header",
    [
        "{}",
        '{"__metadata__":{}}',
        '{"__metadata__":null}',
        '{ "__metadata__" : { "a" : "b" , "c" : "d" } }',
        '{"w":{"data_offsets":[0,0],"shape":[0],"dtype":"F32"} }  \n\r\t ',
        '{\n "w" : {\t"dtype" : "F32" , "shape" : [ 4 , 0 ] , "data_offsets" : [ 0 , 0 ] }\r}',
        '{"\\u00e9\\n\\ud83d\\ude00{}[]\\"":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}',
        '{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"b":{"dtype":"F64","shape":[0],"data_offsets":[0,0]}}',
        '{"":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}',
    ],
)
def test_unusual_but_valid(header: str) -> None:
    data = file_of(header, b"")
    members = parse(data).members
    library = dict(deserialize(data))
    assert {name: (m.dtype, list(m.shape)) for name, m in members.items()} == {
        name: (info["dtype"], info["shape"]) for name, info in library.items()
    }


def test_unknown_dtype_passes_with_any_size() -> None:
    header = parse(file_of({"w": entry("Q3_K", [1000, 7], [0, 24])}))
    assert header.members["w"] == Member("w", "Q3_K", (1000, 7), 0, 24)


@pytest.mark.parametrize("dtype", DTYPE_BITS)
def test_size_of_every_dtype(dtype: str) -> None:
    nbytes = DTYPE_BITS[dtype]  # of eight elements
    assert parse(file_of({"w": entry(dtype, [2, 4], [0, nbytes])}, bytes(nbytes))).members["w"].nbytes == nbytes
    with pytest.raises(CorruptionError, match="does not fill"):
        parse(file_of({"w": entry(dtype, [2, 4], [0, nbytes + 1])}, bytes(nbytes + 1)))


def test_order_of_members_and_of_their_data() -> None:
    header = parse(
        file_of({"b": entry("U8", [8], [16, 24]), "c": entry("U8", [0], [16, 16]), "a": entry("U8", [16], [0, 16])})
    )
    assert list(header.members) == ["b", "c", "a"]
    assert [member.name for member in header.by_offset()] == ["a", "c", "b"]


def test_every_truncation_is_named_as_such() -> None:
    for size in range(len(GOOD)):
        with pytest.raises(TruncationError):
            parse(GOOD[:size])


@given(st.binary(max_size=200))
def test_random_bytes(data: bytes) -> None:
    with pytest.raises(QzcError):
        parse(data)


@given(st.text(alphabet='{}[]":,0123456789.eE-"\\u \tntrufalse\x00é', max_size=80))
def test_random_headers(text: str) -> None:
    for header in ("{" + text, '{"w":{' + text, '{"w":{"dtype":"U8","data_offsets":[0,0],"shape":' + text + "}}"):
        try:
            parse(file_of(header, b""))
        except QzcError:
            continue
        deserialize(file_of(header, b""))  # what we accept, the library accepts


@given(st.data())
def test_mutated_files(data: st.DataObject) -> None:
    tensors = {"__metadata__": {"k": "v"}, "a": entry("BF16", [2, 3], [0, 12]), "b": entry("I8", [4], [12, 16])}
    mutated = bytearray(file_of(tensors, bytes(16)))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(mutated) - 1))
        match data.draw(st.sampled_from(["set", "insert", "delete"])):
            case "set":
                mutated[at] = data.draw(st.integers(0, 255))
            case "insert":
                mutated.insert(at, data.draw(st.sampled_from(b'{}[]",:0-9e.\\ ')))
            case _:
                del mutated[at]
    try:
        header = parse(bytes(mutated))
    except QzcError as error:
        assert "\n" not in str(error)
        return
    for member in header.members.values():
        assert 0 <= member.begin <= member.end <= len(mutated) - header.data_start


NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=20).filter(lambda name: name != "__metadata__")


@given(
    st.dictionaries(NAMES, NAMES),
    st.lists(st.tuples(NAMES, st.lists(st.integers(0, 5), max_size=4)), unique_by=lambda t: t[0]),
)
def test_build_and_read_back(metadata: dict[str, str], tensors: list[tuple[str, list[int]]]) -> None:
    members, at = [], 0
    for name, shape in tensors:
        end = at + 2
        for dim in shape:
            end = at + (end - at) * dim
        members.append(Member(name, "F16", tuple(shape), at, end))
        at = end
    head = build_header(metadata, members)
    assert len(head) % 64 == 0
    header = read_header(head, len(head) + at, "x")
    assert header == Header(metadata, {member.name: member for member in members}, len(head))
    assert list(header.members) == [name for name, _ in tensors] and list(header.metadata) == list(metadata)


def test_built_bytes() -> None:
    head = build_header({"format": "qzc"}, [Member("é", "U8", (1,), 0, 1)])
    text = '{"__metadata__":{"format":"qzc"},"é":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'.encode()
    assert head == (120).to_bytes(8, "little") + text.ljust(120)


def test_reserved_space() -> None:
    member = Member("w", "U8", (1,), 0, 1)
    head = build_header(None, [member], reserve=1000)
    assert len(head) == 1024  # the next multiple of 64
    assert read_header(head, 1025, "x").members == {"w": member}
    with pytest.raises(InvalidArgumentError, match="64 are reserved"):
        build_header({"a": "x" * 100}, [], reserve=64)


def test_what_cannot_be_built() -> None:
    member = Member("w", "U8", (0,), 0, 0)
    with pytest.raises(InvalidArgumentError, match="two tensors"):
        build_header(None, [member, member])
    with pytest.raises(InvalidArgumentError, match="reserved"):
        build_header(None, [Member("__metadata__", "U8", (0,), 0, 0)])
    with pytest.raises(InvalidArgumentError, match="Unicode"):
        build_header({"a": "\ud800"}, [])
    with pytest.raises(InvalidArgumentError, match="limit of 100,000,000"):
        build_header({"a": "x" * 100_000_000}, [])


def test_ten_thousand_tensors_are_quick() -> None:
    members = [
        Member(f"model.layers.{i}.self_attn.q_proj.weight", "F32", (4, 4), 64 * i, 64 * i + 64) for i in range(10_000)
    ]
    head = build_header(None, members)
    start = time.process_time()
    assert len(read_header(head, len(head) + 640_000, "x").members) == 10_000
    assert time.process_time() - start < 1  # 0.06 s where it was written; quadratic work would take minutes


def test_a_bomb_of_lists_takes_no_memory() -> None:
    text = '{"w":{"shape":[' + "[]," * 300_000 + "[]]}}"
    with pytest.raises(CorruptionError, match="no end within"):
        parse(file_of(text))


def test_read_file_header(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(GOOD)
    assert read_file_header(path) == parse(GOOD)
    with pytest.raises(FileAccessError, match=r"missing\.safetensors: no such file or folder"):
        read_file_header(tmp_path / "missing.safetensors")
    with pytest.raises(FileAccessError, match="it is a folder"):
        read_file_header(tmp_path)


def test_a_long_name_is_cut_in_messages() -> None:
    with pytest.raises(CorruptionError) as caught:
        parse(file_of(json.dumps({"x" * 5000: 1})))
    assert len(str(caught.value)) < 300
