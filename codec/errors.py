"""What can go wrong, split by who is to blame. Every error that qzc raises on purpose is a `QzcError`."""


class QzcError(Exception):
    """Base of the family. The message says what is wrong, where (tensor, chunk, offset) and what to do."""

    exit_code = 1


class InvalidArgumentError(QzcError, ValueError):
    """The caller asked for something that has no meaning: a bad option, an unknown tensor name, a wrong shape."""

    exit_code = 2


class CorruptionError(QzcError, ValueError):
    """The bytes are not what a writer of the format produces: a bad checksum, an impossible offset, a broken stream."""

    exit_code = 3


class TruncationError(CorruptionError):
    """The file ends before the bytes that its header promises."""


class VerificationError(QzcError):
    """A comparison that was asked for came out different, or what was written does not decode to what was coded."""

    exit_code = 3


class UnsupportedError(QzcError):
    """A well-formed file that this qzc cannot read or a dtype it cannot handle: the message names version, coder or dtype."""

    exit_code = 4


class FileAccessError(QzcError, OSError):
    """The operating system refused: missing file, no permission, disk full."""

    exit_code = 1
