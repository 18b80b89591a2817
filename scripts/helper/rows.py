"""Packed files as they are read by libraries of Python: Zstandard, and Parquet's rows as JSON lines."""

import io
import json
import sys

from child import fail, fail_without

DAMAGED = "copy or download the file again"
BYTES_AT_ONCE = 1 << 12  # what they unpack to lies in memory
ROWS_AT_ONCE = 256
ROLE_FIELDS = ("messages", "conversations", "prompt", "completion", "tools")


def unzstd():
    try:
        import zstandard
    except ImportError as error:
        fail_without("zstandard", error)
    unpack, begun = zstandard.ZstdDecompressor(), False
    frame = None
    while block := sys.stdin.buffer.read(BYTES_AT_ONCE):
        while block:
            if frame is None:
                frame = unpack.decompressobj()
            try:
                sys.stdout.buffer.write(frame.decompress(block))
            except zstandard.ZstdError as error:
                fail(65, f"damaged zstd data ({error}); {DAMAGED}" if begun else f"is named .zst but is not a zstd file; {DAMAGED}")
            begun = True
            block = frame.unused_data if frame.eof else b""
            if frame.eof:
                frame = None
    if frame is not None:
        fail(65, f"damaged zstd data: it ends in the middle; {DAMAGED}")
    sys.stdout.buffer.flush()


def without_nulls(value):
    """Parquet gives each message the fields of all."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


def rows(text_field):
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        fail_without("pyarrow", error)
    try:
        source = sys.stdin.buffer if sys.stdin.buffer.seekable() else io.BytesIO(sys.stdin.buffer.read())
        table = parquet.ParquetFile(source)
        schema = table.schema_arrow
        columns = [name for name in (text_field, *ROLE_FIELDS) if name in schema.names]
        if not columns or columns == ["tools"]:
            texts = [field.name for field in schema if pyarrow.types.is_string(field.type) or pyarrow.types.is_large_string(field.type)]
            fail(65, f"has no column {json.dumps(text_field)}, messages, conversations, or prompt with completion; " +
                     (f"set text_field to one of: {', '.join(texts)}" if texts else "no other holds text"))
        for batch in table.iter_batches(batch_size=ROWS_AT_ONCE, columns=list(dict.fromkeys(columns))):
            for row in batch.to_pylist():
                line = json.dumps(without_nulls(row), ensure_ascii=False, default=str)
                sys.stdout.buffer.write(line.encode("utf-8") + b"\n")
    except (pyarrow.ArrowException, OSError, ValueError, MemoryError) as error:
        if isinstance(error, BrokenPipeError):
            raise
        fail(65, f"is not a Parquet file that the package pyarrow can read ({error}); {DAMAGED}")
    sys.stdout.buffer.flush()
