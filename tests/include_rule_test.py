"""pipeline → stages → launch → kernels, and the rooms of pipeline/ and stages/ in their order: nobody includes upward, every quoted
include resolves, no .cu or .cpp is included, and every third-party library has one home.

    python3 tests/include_rule_test.py              checks the source tree
    python3 tests/include_rule_test.py --self-test  checks this checker on a tree with one planted fault of each kind
"""

import re
import sys
import tempfile
from pathlib import Path

FOLDERS = ["kernels", "launch", "stages", "pipeline"]  # each may include itself and those before it
# The same inside of pipeline/ and stages/. "" is the folder's top: the flow of pipeline/, the mathematics of stages/, which formats lay out.
ROOMS = {
    "pipeline": ["files", "options", "model", "data", "plan", "output", "journal", "layers", "", "commands"],
    "stages": ["", "formats"],
}

# Headers in <> → the folder that may include them.
HOMES = [
    (r"(hdf5|H5\w*)\.h(pp)?", "pipeline"),
    (r"toml\+\+/.*|toml\.hpp", "pipeline"),
    (r"CLI/.*", "pipeline"),
    (r"re2/.*", "pipeline"),
    (r"mpi(-ext)?\.h", "launch"),
    (r"nccl\w*\.h", "launch"),
    (r"cublas.*|cusolver.*", "kernels"),
    (r"cblas\w*\.h|lapacke\w*\.h|openblas.*", "kernels"),
]
NOWHERE = [(r"tokenizers.*", "tokenizers is used by the Python helper only")]

INCLUDE = re.compile(r'^\s*#\s*(?:include|import)\s*(?:"([^"]+)"|<([^>]+)>)', re.MULTILINE)
COMMENT = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"', re.DOTALL)


def without_comments(text):
    """Line numbers stay; strings, which may hold comment marks, stay."""
    return COMMENT.sub(lambda match: match[0] if match[0].startswith('"') else "\n" * match[0].count("\n"), text)


def room_of(path):
    """The room of a file below its folder; model/families belongs to model."""
    parts = Path(path).parts
    return parts[1] if len(parts) > 2 else ""


def faults_of_room(file, quoted):
    """The fault of an include between rooms of one folder."""
    folder = Path(file).parts[0]
    rooms = ROOMS.get(folder)
    if rooms is None or Path(quoted).parts[0] != folder:
        return
    mine, other = room_of(file), room_of(quoted)
    if mine not in rooms:
        yield f"{folder}/{mine} is no room: {', '.join(filter(None, rooms))}"
    elif other not in rooms or rooms.index(other) > rooms.index(mine):
        allowed = ", ".join(room or "the top" for room in rooms[: rooms.index(mine) + 1])
        yield f'"{quoted}" points upward: {folder}/{mine} may include {allowed}'


def faults_of_include(root, file, quoted, angled):
    """The faults of one include line of `file`, a path below root."""
    folder = Path(file).parts[0]
    if angled is not None:
        for pattern, home in HOMES:
            if re.fullmatch(pattern, angled) and folder != home:
                yield f"<{angled}> belongs to {home}/ only"
        for pattern, reason in NOWHERE:
            if re.fullmatch(pattern, angled):
                yield f"<{angled}>: {reason}"
        if angled.split("/")[0] in FOLDERS:
            yield f"<{angled}> is a header of this project: use quotes"
        return
    if Path(quoted).suffix in (".cu", ".cpp"):
        yield f'"{quoted}" is a source file: include its header'
    if not (root / quoted).is_file():
        yield f'"{quoted}" does not exist (paths start at the project root)'
        return
    target = Path(quoted).parts[0]
    if target not in FOLDERS:
        yield f'"{quoted}" is in none of {", ".join(FOLDERS)}'
    elif FOLDERS.index(target) > FOLDERS.index(folder):
        yield f'"{quoted}" points upward: {folder}/ may include {", ".join(FOLDERS[: FOLDERS.index(folder) + 1])}'
    else:
        yield from faults_of_room(file, quoted)


def faults(root):
    """One line for each fault, and the number of files and includes that were read."""
    found, files, includes = [], 0, 0
    for folder in FOLDERS:
        for file in sorted((root / folder).rglob("*")):
            if file.suffix not in (".h", ".cpp", ".cu", ".cuh", ".hpp"):
                continue
            files += 1
            text = without_comments(file.read_text(encoding="utf-8"))
            for match in INCLUDE.finditer(text):
                includes += 1
                line = text.count("\n", 0, match.start() + len(match[0])) + 1
                for fault in faults_of_include(root, file.relative_to(root).as_posix(), match[1], match[2]):
                    found.append(f"{file.relative_to(root).as_posix()}:{line}: {fault}")
    return found, files, includes


GOOD = {
    "kernels/norm.h": "#include <cstdint>\n",
    "kernels/norm.cpp": '#include "kernels/norm.h"\n#include <cblas.h>\n',
    "kernels/norm.cu": '#include "kernels/norm.h"\n#include <cublas_v2.h>\n#include <cusolverDn.h>\n',
    "launch/comm.h": '#include "kernels/norm.h"\n',
    "launch/comm.cpp": '#include "launch/comm.h"\n#include <mpi.h>\n#  include <nccl.h>\n',
    "stages/solve.cpp": '#include "launch/comm.h"\n// #include "pipeline/main.h"\n/*\n#include <mpi.h>\n*/\n#include "kernels/norm.h"\n',
    "pipeline/files/error.h": "",
    "pipeline/model/families/llama.h": "",
    "stages/formats/gptq.h": "",
    "pipeline/quantize.cpp": '#include "pipeline/model/families/llama.h"\n#include "stages/formats/gptq.h"\n',
    "pipeline/main.cpp": '#include <CLI/CLI.hpp>\n#include <hdf5.h>\n#include <toml++/toml.h>\nconst char* s = "/*";\n',
}
# file, line that is added to it, words of the fault
PLANTED = [
    ("kernels/norm.cpp", '#include "launch/comm.h"', "points upward"),
    ("kernels/norm.h", '#include "pipeline/model.h"', "points upward"),
    ("launch/comm.h", '#include "stages/solve.h"', "points upward"),
    ("stages/solve.cpp", '#include "pipeline/model.h"', "points upward"),
    ("stages/solve.cpp", '#include "kernels/missing.h"', "does not exist"),
    ("kernels/norm.cpp", '#include "norm.h"', "does not exist"),
    ("kernels/norm.cpp", '#include "kernels/norm.cu"', "source file"),
    ("stages/solve.cpp", '#include "kernels/norm.cpp"', "source file"),
    ("pipeline/main.cpp", '#include "tests/check.h"', "in none of"),
    ("pipeline/main.cpp", "#include <kernels/norm.h>", "use quotes"),
    ("pipeline/main.cpp", "#include <mpi.h>", "belongs to launch/"),
    ("stages/solve.cpp", "  #  include <mpi.h>", "belongs to launch/"),
    ("kernels/norm.cu", "#include <nccl.h>", "belongs to launch/"),
    ("launch/comm.cpp", "#include <cblas.h>", "belongs to kernels/"),
    ("stages/solve.cpp", "#include <cublas_v2.h>", "belongs to kernels/"),
    ("launch/comm.cpp", "#include <cusolverDn.h>", "belongs to kernels/"),
    ("stages/solve.cpp", "#include <hdf5.h>", "belongs to pipeline/"),
    ("stages/solve.cpp", "#include <H5Cpp.h>", "belongs to pipeline/"),
    ("launch/comm.h", "#include <toml++/toml.hpp>", "belongs to pipeline/"),
    ("launch/comm.h", "#include <CLI/CLI.hpp>", "belongs to pipeline/"),
    ("pipeline/main.cpp", "#include <tokenizers_cpp.h>", "Python helper"),
    ("pipeline/files/error.h", '#include "pipeline/model/families/llama.h"', "pipeline/files may include files"),
    ("pipeline/model/families/llama.h", '#include "pipeline/model.h"', "points upward"),
    ("stages/solve.cpp", '#include "stages/formats/gptq.h"', "points upward"),
    ("pipeline/attic/old.h", '#include "pipeline/files/error.h"', "is no room"),
    ("pipeline/main.cpp", '#include "kernels/missing.h"', "does not exist"),  # after a string that holds a comment mark
]


def self_test():
    def check(extra):
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            for name, text in {**GOOD, "stages/solve.h": "", "pipeline/model.h": "", "pipeline/attic/old.h": "", "tests/check.h": ""}.items():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).write_text(text + (extra[1] + "\n" if extra and extra[0] == name else ""), encoding="utf-8")
            return faults(root)

    errors = []
    found, files, includes = check(None)
    if found or files != 14 or includes != 17:
        errors.append(f"the tree without a fault: {files} files, {includes} includes, faults {found}")
    for plant in PLANTED:
        found, _, _ = check(plant)
        line = GOOD.get(plant[0], "").count("\n") + 1
        if len(found) != 1 or plant[2] not in found[0] or not found[0].startswith(f"{plant[0]}:{line}: "):
            errors.append(f"{plant[0]} with {plant[1]!r} (line {line}): expected one fault with {plant[2]!r}, got {found}")
    return errors, f"{len(PLANTED)} planted faults found"


def main():
    if sys.argv[1:] == ["--self-test"]:
        errors, summary = self_test()
    else:
        errors, files, includes = faults(Path(__file__).resolve().parent.parent)
        summary = f"{files} files, {includes} includes follow the rule"
        if files == 0:
            errors = ["no source file found"]
    print("\n".join(errors) if errors else summary)
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
