#!/usr/bin/env python3
"""Token ids of documents, by the Hugging Face tokenizers library. qpipe runs it; it uses no network.

    qpipe_tokenize.py TOKENIZER_JSON < documents > ids

Standard input:  each document as its length in bytes (u64), then its UTF-8 text.
Standard output: number of documents (i64), tokens of each document (i64), ids of all documents (i32). All little-endian.
Special tokens are added as the tokenizer's post-processor says; truncation and padding are off.
On a fault, the last line of standard error says what and the exit status is 65 (data) or 69 (package missing).
"""

import array
import os
import struct
import sys

DOCUMENTS_AT_ONCE = 1024


def fail(status, message):
    print(message, file=sys.stderr)
    sys.exit(status)


def read_documents(file):
    number = 0
    while header := file.read(8):
        number += 1
        text = file.read(struct.unpack("<Q", header)[0])
        try:
            yield text.decode("utf-8")
        except UnicodeDecodeError as error:
            fail(65, f"document {number} is not UTF-8 at byte {error.start}; convert the text to UTF-8")


def main():
    if len(sys.argv) != 2:
        fail(64, __doc__)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        fail(69, f"the Python package tokenizers cannot be used ({error}); run: {sys.executable} -m pip install tokenizers")
    try:
        tokenizer = Tokenizer.from_file(sys.argv[1])
    except Exception as error:  # the library raises plain Exception
        fail(65, f"{sys.argv[1]} is not a tokenizer that the package tokenizers can read ({error})")
    tokenizer.no_truncation()
    tokenizer.no_padding()

    counts, ids = array.array("q"), array.array("i")
    batch = []

    def encode_batch():
        for encoding in tokenizer.encode_batch(batch, add_special_tokens=True):
            counts.append(len(encoding.ids))
            ids.extend(encoding.ids)
        batch.clear()

    for document in read_documents(sys.stdin.buffer):
        batch.append(document)
        if len(batch) == DOCUMENTS_AT_ONCE:
            encode_batch()
    encode_batch()

    if sys.byteorder == "big":
        counts.byteswap()
        ids.byteswap()
    sys.stdout.buffer.write(struct.pack("<q", len(counts)) + counts.tobytes() + ids.tobytes())
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
