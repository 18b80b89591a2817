#!/usr/bin/env python3
"""Writes docs/families.md from what `qpipe families` says of each variant and what the tests test.

    families_table.py QPIPE SHARED OUT.md            writes it
    families_table.py QPIPE SHARED OUT.md --check    fails when it is stale"""
import argparse
import difflib
import json
import os
import subprocess
import sys

from variants import VARIANTS

GOLDEN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "golden", "models")
HEAD = """# Families

The families of models that qpipe reads, by the `model_type` of their config.json. Of a vision-language model that is the one of
its text part; the other parts are copied as they are. Made by `tests/python/families_table.py`.

Each variant is a tiny random checkpoint with the logits of the reference implementation, which qpipe's are compared with on the
CPU and on CUDA. GPTQ, AWQ and NF4: qpipe's quantized folder gives the logits of the peer's own unpacking in the reference
implementation; where a loader is named, it reads the folder as it is, too. A family without a variant is a relative of
another: its config.json is read, and what it computes is what the others have.

| model_type | variant | kinds of layers | GPTQ loads in | AWQ loads in | NF4 loads in |
| --- | --- | --- | --- | --- | --- |
"""
LOADERS = {
    "ct": "transformers",
    "gptqmodel": "GPTQModel",
    "awq": "transformers",
    "gptqmodel-awq": "GPTQModel",
    "bnb": "transformers",
}


def described(qpipe, folders):
    """All model_types, and of each folder its model_type and its kinds."""
    run = subprocess.run([qpipe, "families", "--json", *folders], stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(run.stdout)
    return found["families"], [(model["model_type"], ", ".join(model["kinds"])) for model in found["models"]]


def loader(variant, able):
    named = next((LOADERS[name] for name in able if name in variant.loaders.split()), None)
    return named or "compared, no loader"


def loaders(variant):
    return [loader(variant, able) for able in (("ct", "gptqmodel"), ("awq", "gptqmodel-awq"), ("bnb",))]


def rows(qpipe, models):
    golden = sorted(os.listdir(GOLDEN))
    families, kinds = described(qpipe, [os.path.join(models, n) for n in VARIANTS] + [os.path.join(GOLDEN, n) for n in golden])
    of_variants, of_golden = kinds[: len(VARIANTS)], dict(kinds[len(VARIANTS) :])
    tested = {model_type for model_type, _ in of_variants}
    for family in families:
        for (name, variant), (model_type, words) in zip(VARIANTS.items(), of_variants):
            if model_type == family:
                yield [f"`{family}`", name, words, *loaders(variant)]
        if family not in tested:
            yield [f"`{family}`", "", of_golden.get(family, ""), "", "", ""]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("qpipe")
    parser.add_argument("shared")
    parser.add_argument("out")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    models = os.path.join(args.shared, "oracles", "models")
    if not os.path.isdir(models):
        print("no oracles: skipped")
        return 77
    text = HEAD + "".join(f"| {' | '.join(row)} |\n" for row in rows(args.qpipe, models))
    if not args.check:
        with open(args.out, "w") as f:
            f.write(text)
        return 0
    with open(args.out) as f:
        stored = f.read()
    if stored == text:
        return 0
    difference = difflib.unified_diff(stored.splitlines(), text.splitlines(), args.out, "made now", lineterm="", n=0)
    print("\n".join(difference))
    print(f"{args.out} is stale: {sys.argv[0]} {args.qpipe} {args.shared} {args.out} makes it anew")
    return 1


if __name__ == "__main__":
    sys.exit(main())
