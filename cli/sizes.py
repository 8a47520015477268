"""Numbers as people read them."""


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
