"""What qpipe leaves to libraries of Python. qpipe runs this folder, isolated (python -I), as a process of its own for each piece of work:

    python -I -B HELPER ids TOKENIZER TEXT_FIELD   documents to token ids (token_ids.py)
    python -I -B HELPER unzstd                     a .zst file to its contents (rows.py)
    python -I -B HELPER rows TEXT_FIELD            a Parquet file to JSON lines (rows.py)
    python -I -B HELPER model ORG/NAME REVISION whole|config            a model of the hub (hub.py)
    python -I -B HELPER data ORG/NAME CONFIG SPLIT                      data of the hub
    python -I -B HELPER push FOLDER ORG/NAME private| pr| REVISION      a folder to the hub

Each reads standard input and writes standard output. On a fault, the last line of standard error says what, and the exit status is one of
qpipe's own (pipeline/files/error.h).
"""

import sys

import child


def main():
    work, *arguments = sys.argv[1:] or [""]
    child.end_with_parent()
    child.limit_memory()
    try:
        if work == "ids":
            import token_ids

            token_ids.main(*arguments)
        elif work in ("unzstd", "rows"):
            import rows

            getattr(rows, work)(*arguments)
        elif work in ("model", "data", "push"):
            import hub

            getattr(hub, work)(*arguments)
        else:
            child.fail(64, __doc__)
    except TypeError as error:
        if error.__traceback__.tb_next is not None:
            raise
        child.fail(64, __doc__)
    except BrokenPipeError:
        child.fail(74, "nobody reads the answer")


if __name__ == "__main__":
    main()
