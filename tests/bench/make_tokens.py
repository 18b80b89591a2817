#!/usr/bin/env python3
"""Token ids to measure perplexities on: make_tokens.py MODEL OUT.safetensors [--books FOLDER] [--seqlen 512]

`calib` int32 [128, seqlen] from Emma and Mansfield Park, evenly spaced windows; `eval` int32 [48, seqlen] from Persuasion, one
window after the other. Where the model has a first token (bos_token_id) that its tokenizer puts there, every window begins
with it: some models, Gemma among them, make nothing of text without it. Needs the packages tokenizers and numpy."""
import argparse
import gzip
import json
import os

import numpy as np
from tokenizers import Tokenizer

BOOKS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "data")
CALIBRATION, EVALUATION = (128, ("emma", "mansfield-park")), (48, ("persuasion",))


def tokens_of(tokenizer, folder, books):
    ids = []
    for book in books:
        with gzip.open(os.path.join(folder, book + ".txt.gz"), "rt", encoding="utf-8") as f:
            ids += tokenizer.encode(f.read(), add_special_tokens=False).ids
    return np.array(ids, dtype="<i4")


def windows(ids, count, seqlen, first, spread):
    """[count, seqlen]"""
    taken = seqlen - len(first)
    step = (len(ids) - taken) // (count - 1) if spread else taken
    rows = [np.concatenate([first, ids[i * step : i * step + taken]]) for i in range(count)]
    return np.stack(rows).astype("<i4")


def write_safetensors(path, tensors):
    header, end = {}, 0
    for name, value in tensors.items():
        begin, end = end, end + value.nbytes
        header[name] = {"dtype": "I32", "shape": list(value.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for value in tensors.values():
            file.write(value.tobytes())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("out")
    parser.add_argument("--books", default=BOOKS)
    parser.add_argument("--seqlen", type=int, default=512)
    args = parser.parse_args()
    tokenizer = Tokenizer.from_file(os.path.join(args.model, "tokenizer.json"))
    first = np.array(tokenizer.encode("").ids, dtype="<i4")  # what the tokenizer itself puts in front
    tensors = {}
    for name, (count, books), spread in (("calib", CALIBRATION, True), ("eval", EVALUATION, False)):
        ids = tokens_of(tokenizer, args.books, books)
        tensors[name] = windows(ids, count, args.seqlen, first, spread)
    write_safetensors(args.out, tensors)


if __name__ == "__main__":
    main()
