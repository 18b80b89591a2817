"""Token ids of documents.

Standard input:  each document as its length in bytes (u64), its row (i64) and its UTF-8 bytes. Row 0 is a text; others are numbers of rows whose
                 JSON the document is: chats, and prompts with their completions (chats.py).
Standard output: number of documents (i64), tokens of each document (i64), ids of all documents (i32).
All little-endian. TOKENIZER is tokenizer.json, or tokenizer.model where there is no such file; chat templates stand beside it. To a text special
tokens are added as the tokenizer's post-processor says; a chat has those of its template alone. Truncation and padding are off.
"""

import array
import os
import struct
import sys

from child import allow, fail, fail_without

DOCUMENTS_AT_ONCE = 1024
BYTES_AT_ONCE = 1 << 24
LOADING_SECONDS = 60
LEAST_SECONDS = 5
LEAST_BYTES_PER_SECOND = 20_000  # a hundredth of what a slow tokenizer does


def read_exactly(file, count):
    try:
        text = file.read(count)
    except (MemoryError, OverflowError):
        fail(74, f"a document of {count} bytes is more than there is memory for")
    if len(text) != count:
        fail(74, "the text ends in the middle of a document")
    return text


def read_documents(file):
    number = 0
    while header := file.read(16):
        number += 1
        if len(header) != 16:
            fail(74, "the text ends in the middle of a document")
        length, row = struct.unpack("<Qq", header)
        text = read_exactly(file, length)
        try:
            yield text.decode("utf-8"), length, row
        except UnicodeDecodeError as error:
            fail(65, f"document {number} is not UTF-8 at byte {error.start}; convert the text to UTF-8")


def load_tokenizer(path):
    if path.endswith(".model"):
        import sentence_pieces

        return sentence_pieces.SentencePieces(path)
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        fail_without("tokenizers", error)
    # What the library raises derives from BaseException where its Rust code panics.
    try:
        tokenizer = Tokenizer.from_file(path)
        tokenizer.no_truncation()
        tokenizer.no_padding()
    except BaseException as error:
        fail(65, f"{path} is not a tokenizer that the package tokenizers can read ({error}); restore the model's original file")
    return tokenizer


class Encoder:
    """Documents in, counts and ids out; neighbours of one kind go through the tokenizer together."""

    def __init__(self, tokenizer, path):
        self.tokenizer, self.path = tokenizer, path
        self.counts, self.ids = array.array("q"), array.array("i")
        self.batch, self.bytes, self.adds_special = [], 0, True

    def add(self, text, size, adds_special):
        if adds_special != self.adds_special:
            self.flush()
            self.adds_special = adds_special
        self.batch.append(text)
        self.bytes += size
        if len(self.batch) == DOCUMENTS_AT_ONCE or self.bytes >= BYTES_AT_ONCE:
            self.flush()

    def flush(self):
        allow(LEAST_SECONDS + self.bytes / LEAST_BYTES_PER_SECOND)
        try:
            for encoding in self.tokenizer.encode_batch(self.batch, add_special_tokens=self.adds_special):
                self.counts.append(len(encoding.ids))
                self.ids.extend(encoding.ids)
        except OverflowError:
            fail(65, f"{self.path} gives a token an id of 2^31 or more; restore the model's original file")
        except BaseException as error:
            fail(65, f"{self.path} fails on the text ({type(error).__name__}: {error}); restore the model's original file")
        allow(0)
        self.batch.clear()
        self.bytes = 0


def main(path, text_field):
    allow(LOADING_SECONDS)
    encoder = Encoder(load_tokenizer(path), path)
    allow(0)
    chats = None
    for document, size, row in read_documents(sys.stdin.buffer):
        is_chat = False
        if row > 0:
            if chats is None:
                from chats import Rows

                chats = Rows(os.path.dirname(path), text_field)
            document, is_chat = chats.text_of(document, row)
            size = len(document)
        encoder.add(document, size, not is_chat)
    encoder.flush()
    if sys.byteorder == "big":
        encoder.counts.byteswap()
        encoder.ids.byteswap()
    sys.stdout.buffer.write(struct.pack("<q", len(encoder.counts)))
    sys.stdout.buffer.write(memoryview(encoder.counts))
    sys.stdout.buffer.write(memoryview(encoder.ids))
    sys.stdout.buffer.flush()
