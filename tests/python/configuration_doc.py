#!/usr/bin/env python3
"""Writes the list of options in docs/configuration.md, between its two marks, from what `qpipe --help` says.

    configuration_doc.py QPIPE docs/configuration.md            writes it
    configuration_doc.py QPIPE docs/configuration.md --check    fails when it is stale"""
import argparse
import difflib
import os
import sys

sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../scripts"))
from help_text import help_of, options

BEGIN = "<!-- The options, made by tests/python/configuration_doc.py -->\n"
END = "<!-- The end of the options -->\n"
HEAD = "| option | type | default | unit | meaning (values allowed) |\n| --- | --- | --- | --- | --- |\n"


def plain(text):
    """Markdown takes none of it for its own."""
    for sign in "|*[]":
        text = text.replace(sign, "\\" + sign)
    return text


def row(option):
    default = f"`{option.default}`" if option.default not in ("none", "unset") else option.default
    return f"| `{option.name}` | {option.type} | {default} | {plain(option.unit)} | {plain(option.meaning)} |\n"


def title(option):
    return f"[[{option.section}.{option.entry}]]" if option.entry else f"[{option.section}]"


def listed(qpipe):
    """A table for each section, and behind it one for each kind of entry."""
    tables = {}
    for option in options(help_of(qpipe)):
        tables.setdefault(title(option), []).append(row(option))
    return "".join(f"\n### `{name}`\n\n{HEAD}{''.join(rows)}" for name, rows in tables.items()) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("qpipe")
    parser.add_argument("document")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    with open(args.document) as f:
        stored = f.read()
    before, rest = stored.split(BEGIN)
    after = rest.split(END)[1]
    text = before + BEGIN + listed(args.qpipe) + END + after
    if stored == text:
        return 0
    if not args.check:
        with open(args.document, "w") as f:
            f.write(text)
        return 0
    difference = difflib.unified_diff(stored.splitlines(), text.splitlines(), args.document, "made now", lineterm="", n=0)
    print("\n".join(difference))
    print(f"{args.document} is stale: {sys.argv[0]} {args.qpipe} {args.document} makes it anew")
    return 1


if __name__ == "__main__":
    sys.exit(main())
