#!/usr/bin/env python3
"""Token ids of documents, by the Hugging Face tokenizers library. qpipe runs it, isolated (python -I); it uses no network.

    qpipe_tokenize.py TOKENIZER_JSON < documents > ids

Standard input:  each document as its length in bytes (u64), then its UTF-8 text.
Standard output: number of documents (i64), tokens of each document (i64), ids of all documents (i32). All little-endian.
Special tokens are added as the tokenizer's post-processor says; truncation and padding are off.
On a fault, the last line of standard error says what and the exit status is 65 (data) or 69 (package missing). SIGPROF ends it when a tokenizer takes
much more processor time than the text is worth.
"""

import array
import os
import resource
import signal
import struct
import sys

DOCUMENTS_AT_ONCE = 1024
BYTES_AT_ONCE = 1 << 24
LOADING_SECONDS = 60
LEAST_SECONDS = 5
LEAST_BYTES_PER_SECOND = 20_000  # a hundredth of what a slow tokenizer does


def fail(status, message):
    print(" ".join(str(message).split())[:2000], file=sys.stderr)
    sys.exit(status)


def end_with_parent():
    try:
        import ctypes

        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    except (ImportError, OSError, AttributeError):
        pass  # a Python without it: qpipe ends this process itself unless it is killed


def limit_memory():
    """A tokenizer can make terabytes of a text; half of the machine is left to the others."""
    half = os.sysconf("SC_PHYS_PAGES") // 2 * os.sysconf("SC_PAGE_SIZE")
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (half if most == resource.RLIM_INFINITY else min(half, most), most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def allow(seconds):
    """Processor time of all threads from now on; SIGPROF's default action ends the process, also inside of the library."""
    signal.setitimer(signal.ITIMER_PROF, seconds)


def read_exactly(file, count):
    text = file.read(count)
    if len(text) != count:
        fail(74, "the text ends in the middle of a document")
    return text


def read_documents(file):
    number = 0
    while header := file.read(8):
        number += 1
        text = read_exactly(file, struct.unpack("<Q", header)[0])
        try:
            yield text.decode("utf-8"), len(text)
        except UnicodeDecodeError as error:
            fail(65, f"document {number} is not UTF-8 at byte {error.start}; convert the text to UTF-8")


def main():
    if len(sys.argv) != 2:
        fail(64, __doc__)
    end_with_parent()
    limit_memory()
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        fail(69, f"the Python package tokenizers cannot be used ({error}); run scripts/install-dependencies, or set QPIPE_PYTHON to the Python of an "
                 f"environment that has it: python3 -m venv ENV && ENV/bin/python -m pip install tokenizers")
    path = sys.argv[1]
    allow(LOADING_SECONDS)
    # What the library raises derives from BaseException where its Rust code panics.
    try:
        tokenizer = Tokenizer.from_file(path)
        tokenizer.no_truncation()
        tokenizer.no_padding()
    except BaseException as error:
        fail(65, f"{path} is not a tokenizer that the package tokenizers can read ({error}); restore the model's original file")

    counts, ids = array.array("q"), array.array("i")
    batch = []

    def encode_batch(batch_bytes):
        allow(LEAST_SECONDS + batch_bytes / LEAST_BYTES_PER_SECOND)
        try:
            for encoding in tokenizer.encode_batch(batch, add_special_tokens=True):
                counts.append(len(encoding.ids))
                ids.extend(encoding.ids)
        except OverflowError:
            fail(65, f"{path} gives a token an id of 2^31 or more; restore the model's original file")
        except BaseException as error:
            fail(65, f"{path} fails on the text ({type(error).__name__}: {error}); restore the model's original file")
        batch.clear()

    batch_bytes = 0
    for document, size in read_documents(sys.stdin.buffer):
        batch.append(document)
        batch_bytes += size
        if len(batch) == DOCUMENTS_AT_ONCE or batch_bytes >= BYTES_AT_ONCE:
            encode_batch(batch_bytes)
            batch_bytes = 0
    encode_batch(batch_bytes)
    allow(0)

    if sys.byteorder == "big":
        counts.byteswap()
        ids.byteswap()
    sys.stdout.buffer.write(struct.pack("<q", len(counts)))
    sys.stdout.buffer.write(memoryview(counts))
    sys.stdout.buffer.write(memoryview(ids))
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
