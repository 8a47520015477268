"""Numbers as people read and write them."""

import re


def size_text(nbytes: int) -> str:
    """1234567 -> "1.23 MB" (decimal units, three digits)."""
    value, unit = float(nbytes), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    return f"{nbytes} B" if unit == "B" else f"{value:.3g} {unit}" if value < 100 else f"{value:.0f} {unit}"


def bits_text(bits: float) -> str:
    return f"{bits:.3f} bits"


def size_from(text: str) -> int:
    """ "4GB", "700 MB", "1.5GiB", "123456" -> bytes. Raises ValueError for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:([kMGT]?)(i?)B)?\s*", text)
    if not match:
        raise ValueError(f"{text!r} is not a size such as 700MB or 4GB")
    number, unit, binary = match.groups()
    base = 1024 if binary else 1000
    power = "kMGT".index(unit) + 1 if unit else 0
    return round(float(number) * float(base**power))
