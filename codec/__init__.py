"""Integer codes to bytes and back: packed buffers, frequency tables, coders, chunks and planes. Opens no files.

Importing this room imports nothing else; numba comes in when the first kernel runs.
"""
