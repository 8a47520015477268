"""Whether the members of a `.qzc` file are those that its metadata asks for (SPEC section 1)."""

from __future__ import annotations

from collections.abc import Mapping

from ..codec.chunks import CHUNK_DTYPE
from ..codec.errors import CorruptionError
from ..codec.tensor import matrix_shape
from .header import Member
from .profile import (
    BANK_ROW_NBYTES,
    CHECKSUMS,
    CHUNKS,
    CLASSES,
    OFFSETS,
    REST,
    VECTORS,
    Profile,
    bank_member,
    is_reserved,
    part,
)

Shape = tuple[int | None, ...]  # None: any


def check_members(members: Mapping[str, Member], profile: Profile, path: str) -> None:
    """Every member belongs to something and has the dtype and shape that the profile implies. Raises CorruptionError."""
    for name in (*profile.coded, *profile.ties):
        if is_reserved(name):
            raise CorruptionError(f"{path}: the tensor name {name!r} is reserved")
    tensors = {name for name in members if not is_reserved(name)}
    _check_names(members, tensors, profile, path)
    expected = _expected(profile, len(tensors) + len(profile.coded) + len(profile.ties))
    for member in members.values():
        if member.name == CHECKSUMS or member.name in tensors:
            continue
        shape = expected.get(member.name)
        if shape is None:
            raise CorruptionError(f"{path}: member {member.name!r} belongs to no tensor")
        fits = len(shape) == len(member.shape) and all(
            w in (None, d) for w, d in zip(shape, member.shape, strict=False)
        )
        if member.dtype != "U8" or not fits:
            raise CorruptionError(
                f"{path}: member {member.name!r} is {member.dtype}{list(member.shape)}, not"
                f" U8[{', '.join('any' if want is None else str(want) for want in shape)}]"
            )


def _check_names(members: Mapping[str, Member], tensors: set[str], profile: Profile, path: str) -> None:
    for name in profile.coded:
        if name in tensors:
            raise CorruptionError(f"{path}: tensor {name!r} is both coded and stored uncoded")
        if part(name, "payload") not in members:
            raise CorruptionError(f"{path}: coded tensor {name!r} has no payload")
    for name, target in profile.ties.items():
        if name in tensors or name in profile.coded:
            raise CorruptionError(f"{path}: tensor {name!r} is both stored and tied to {target!r}")
        if target not in profile.coded and target not in tensors:
            raise CorruptionError(f"{path}: tensor {name!r} is tied to {target!r}, which is not stored")
    rates = [coded.rate for coded in profile.coded.values() if coded.rate]
    named = any(number is not None for rate in rates for number in rate.vectors)
    if (CLASSES in members) != bool(rates) or (VECTORS in members) != named:
        raise CorruptionError(f"{path}: {CLASSES} and {VECTORS} must be there exactly if tensors use them")
    for name in (REST, OFFSETS):
        if (name in members) != (profile.source_file is not None):
            raise CorruptionError(f"{path}: {name} and qzc.source_file must come together")


def _expected(profile: Profile, names: int) -> dict[str, Shape]:
    """Shapes of all members that may be there, but for those of the tensors that are stored as they are."""
    expected: dict[str, Shape] = {
        CHUNKS: (None, CHUNK_DTYPE.itemsize),
        CLASSES: (None,),
        VECTORS: (None,),
        REST: (None,),
        OFFSETS: (names, 8),
    }
    for bank, nbytes in BANK_ROW_NBYTES.items():
        expected[bank_member(bank)] = (None, nbytes)
    for name, coded in profile.coded.items():
        expected[part(name, "payload")] = (None,)
        if coded.args:
            rows, columns = matrix_shape(coded.shape)
            expected[part(name, "row_class")], expected[part(name, "column_class")] = (rows,), (columns,)
    return expected
