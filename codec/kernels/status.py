"""What a decoding kernel found. Kernels return one of these numbers; the coders turn them into errors."""

from __future__ import annotations

OK = 0
HEADER_TRUNCATED = 1
BAD_STREAMS = 2
SIZE_MISMATCH = 3
BAD_STATE = 4
STREAM_EXHAUSTED = 5
STREAM_LEFT_OVER = 6
BAD_FINAL_STATE = 7
BAD_PADDING = 8
CODE_TOO_LARGE = 9
PADDING_NOT_ZERO = 10
WRONG_CHECKSUM = 11
BAD_ESCAPES = 12
LOW_STATE = 13
BAD_TABLE = 14

MESSAGES = {
    HEADER_TRUNCATED: "the payload ends inside its header",
    BAD_STREAMS: "the number of streams does not fit the chunk",
    SIZE_MISMATCH: "the stream sizes do not add up to the payload",
    BAD_STATE: "unused bits of the initial states are not zero",
    STREAM_EXHAUSTED: "a stream ends before its last symbol",
    STREAM_LEFT_OVER: "a stream goes on after its last symbol",
    BAD_FINAL_STATE: "a final state is out of range",
    BAD_PADDING: "unused bits at the end of a stream are not zero",
    CODE_TOO_LARGE: "a code is larger than the grid has levels",
    PADDING_NOT_ZERO: "bits behind the last code are not zero",
    WRONG_CHECKSUM: "the checksum of the chunk does not match its bytes",
    LOW_STATE: "an initial state is too low",
    BAD_TABLE: "the table that the payload begins with is damaged",
    BAD_ESCAPES: "the number of escaped bytes is not that of the escapes",
}
