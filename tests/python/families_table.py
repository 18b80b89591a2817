#!/usr/bin/env python3
"""Writes docs/families.md from what `qpipe families --json` says and what the tests test.

    families_table.py QPIPE OUT.md            writes it
    families_table.py QPIPE OUT.md --check    fails when it is stale

`qpipe families --json` gives a list of {"model_type", "kinds": [kinds of layers and what is special in them], "read_by": file}.
QPIPE may also be a .json file with that list."""
import argparse
import difflib
import json
import os
import subprocess
import sys
from collections import defaultdict

from variants import FAMILIES, VARIANTS

HEAD = """# Families

The families of models that qpipe reads, by the `model_type` of their config.json. Of a vision-language model that is the one of
its text part; the other parts are copied as they are. Made by `tests/python/families_table.py`.

Each variant is a tiny random checkpoint with the logits of the reference implementation. Its logits are compared on the CPU and
on CUDA. GPTQ, AWQ and NF4: qpipe's quantized folder gives the logits of the peer's own unpacking in the reference
implementation; where a loader is named, it reads the folder as it is, too.

| model_type | kinds of layers | read by | variant | GPTQ loads in | AWQ loads in | NF4 loads in |
| --- | --- | --- | --- | --- | --- | --- |
"""
LOADERS = {
    "ct": "transformers",
    "gptqmodel": "GPTQModel",
    "awq": "transformers",
    "gptqmodel-awq": "GPTQModel",
    "bnb": "transformers",
}


def families(qpipe):
    if qpipe.endswith(".json"):
        with open(qpipe) as f:
            return json.load(f)
    run = subprocess.run([qpipe, "families", "--json"], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(run.stdout)


def loader(variant, able):
    named = next((LOADERS[name] for name in able if name in variant.loaders.split()), None)
    return named or "compared, no loader"


def rows(found):
    """A vision-language model's variants stand beside its own model_type, or beside that of its text part."""
    listed, of_family = {family["model_type"] for family in found}, defaultdict(list)
    for types, names in FAMILIES.items():
        model_type = next((t for t in types.split() if t in listed), types)
        of_family[model_type] += [(name, VARIANTS[name]) for name in names.split()]
    for family in sorted(found, key=lambda f: f["model_type"]):
        name, kinds = family["model_type"], ", ".join(family["kinds"])
        read_by = os.path.basename(family["read_by"])
        tested = of_family.pop(name, [])
        for variant_name, variant in tested:
            cells = [loader(variant, able) for able in (("ct", "gptqmodel"), ("awq", "gptqmodel-awq"), ("bnb",))]
            if variant.awq is False:
                cells[1] = "no pairs"
            yield [f"`{name}`", kinds, read_by, variant_name, *cells]
        if not tested:
            yield [f"`{name}`", kinds, read_by, "none of its own", "", "", ""]
    if of_family:
        sys.exit(f"tested, but not read by qpipe: {', '.join(sorted(of_family))}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("qpipe")
    parser.add_argument("out")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    text = HEAD + "".join(f"| {' | '.join(row)} |\n" for row in rows(families(args.qpipe)))
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
    print(f"{args.out} is stale: {sys.argv[0]} {args.qpipe} {args.out} makes it anew")
    return 1


if __name__ == "__main__":
    sys.exit(main())
