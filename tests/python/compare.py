#!/usr/bin/env python3
"""qpipe compare from outside: usage compare.py QPIPE SHARED MPIEXEC.

Two ranks compare five methods on a tiny model. Every figure of the table is checked against the folders: perplexities against `qpipe eval`,
sizes against the safetensors headers, bits per weight and loaders against `qpipe verify`, files against a run of the method alone."""
import json
import os
import re
import struct
import subprocess
import sys
import tempfile

METHODS = "gptq:act_group_aware=true,mse=2.4,awq,rtn,bnb-nf4,fp8"
SUFFIXES = {
    "gptq:act_group_aware=true,mse=2.4": "gptq-act_group_aware-true-mse-2.4",
    "awq": "awq",
    "rtn": "rtn",
    "bnb-nf4": "bnb-nf4",
    "fp8": "fp8",
}
BITS = {"gptq:act_group_aware=true,mse=2.4": 4, "awq": 4, "rtn": 4, "bnb-nf4": 4, "fp8": 8}
SERVED = {"gptq:act_group_aware=true,mse=2.4", "awq", "rtn", "fp8"}  # formats.md, section 0
ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "I32": 4, "U8": 1, "I8": 1, "F8_E4M3": 1, "I64": 8}

failures = []


def check(holds, what):
    if not holds:
        failures.append(what)
        print("FAILED:", what, flush=True)


def tensor_bytes(folder):
    total = 0
    for name in os.listdir(folder):
        if re.fullmatch(r"model(-\d+-of-\d+)?\.safetensors", name):
            with open(os.path.join(folder, name), "rb") as f:
                header = json.loads(f.read(struct.unpack("<Q", f.read(8))[0]))
            for key, tensor in header.items():
                if key != "__metadata__":
                    size = ITEM_BYTES[tensor["dtype"]]
                    for n in tensor["shape"]:
                        size *= n
                    total += size
    return total


def contents(folder):
    return {name: open(os.path.join(folder, name), "rb").read() for name in sorted(os.listdir(folder))}


def main():
    qpipe, shared, mpiexec = sys.argv[1:4]
    qpipe = os.path.abspath(qpipe)
    if not os.path.isdir(os.path.join(shared, "oracles")):
        print("no oracles: skipped")
        return 77
    model = f"{shared}/oracles/models/llama"
    tokens = f"{shared}/oracles/calib_tiny.safetensors"
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    if os.geteuid() == 0:
        environment.update(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")

    def run(*arguments, ranks=0):
        command = [qpipe, *arguments]
        if ranks:
            command = [mpiexec, "--oversubscribe", "--bind-to", "none", "-np", str(ranks), *command]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)

    with tempfile.TemporaryDirectory() as work:
        def write_config(name, evaluate):
            path = os.path.join(work, name)
            with open(path, "w") as f:
                f.write(f'[model]\npath = "{model}"\n[calibration]\ndata = "{tokens}"\ndataset = "calib"\nsamples = 31\nseqlen = 48\n'
                        f'[quantize]\ngroup_size = 32\n[parallel]\nbackend = "cpu"\n[output]\npath = "{work}/out"\n[run]\nprogress = "plain"\n' + evaluate)
            return path

        config = write_config("run.toml", f'[evaluate]\ndata = "{tokens}"\ndataset = "calib"\nseqlen = 48\nsamples = 20\n')

        # Faults: one line, before any folder is made.
        for arguments, code, parts in [
            ((config, "--methods", "gtpq"), 64, ["unknown method gtpq", "gptq"]),
            ((config,), 64, ["--methods"]),
            ((write_config("none.toml", ""), "--methods", "rtn"), 78, ["evaluate.data is not set"]),
            # Found in the plan of the second method, before the first has run.
            ((config, "--methods", "rtn,bnb-nf4", "--set", "output.format=gptq"), 78, ["output.format", "bnb-nf4"]),
            ((config, "--methods", "rtn,gptq:group_size=2048"), 78, ["2048", "does not divide"]),
        ]:
            result = run("compare", *arguments, ranks=2)
            ours = [line for line in result.stderr.splitlines() if line.startswith("qpipe: error: ")]
            check(result.returncode == code and len(ours) == 1, f"{arguments[1:]}: exit {result.returncode}\n{result.stderr}")
            for part in parts:
                check(ours and part in ours[0], f"{part!r} in {ours}")
            check(not [n for n in os.listdir(work) if n.startswith("out")], f"{arguments[1:]} wrote {os.listdir(work)}")

        dry = run("compare", config, "--methods", METHODS, "--dry-run", ranks=2)
        check(dry.returncode == 0 and dry.stdout == "", dry.stdout + dry.stderr)
        check(dry.stderr.count("bits per weight") == len(SUFFIXES), dry.stderr)
        check(not [n for n in os.listdir(work) if n.startswith("out")], "--dry-run wrote")

        result = run("compare", config, "--methods", METHODS, "--out", f"{work}/table", ranks=2)
        check(result.returncode == 0, result.stderr)
        if result.returncode != 0:
            return 1
        check(result.stderr.count("perplexity of the original") == 1, "the original is evaluated once\n" + result.stderr)
        print(result.stdout, flush=True)
        table = json.load(open(f"{work}/table.json"))
        markdown = open(f"{work}/table.md").read()

        def perplexity(folder):
            eval_ = run("eval", "--model", folder, "--data", tokens, "--dataset", "calib", "--seqlen", "48", "--samples", "20", "--backend", "cpu")
            return float(re.match(r"perplexity ([0-9.]+) ", eval_.stdout).group(1))

        def agree(a, b):
            return abs(a - b) <= 0.5e-4 * (1 + 1e-9)  # eval prints four decimals

        original = table["original"]
        check(agree(original["perplexity"], perplexity(model)), f"original: {original}")
        check(original["bytes"] == tensor_bytes(model), f"original: {original['bytes']} bytes, not {tensor_bytes(model)}")
        check([row["label"] for row in table["rows"]] == list(SUFFIXES), table["rows"])
        for row in table["rows"]:
            label, folder = row["label"], f"{work}/out-{SUFFIXES[row['label']]}"
            check(row["folder"] == folder, row["folder"])
            check(agree(row["perplexity"], perplexity(folder)), f"{label}: {row['perplexity']}, not {perplexity(folder)}")
            check(abs(row["perplexity_increase"] - (row["perplexity"] / original["perplexity"] - 1)) < 1e-12, f"{label}: increase")
            check(row["bytes"] == tensor_bytes(folder), f"{label}: {row['bytes']} bytes, not {tensor_bytes(folder)}")
            check(row["bits"] == BITS[label], f"{label}: {row['bits']} bits")
            check(row["calibrated"] == (row["method"] in ("gptq", "awq")), f"{label}: calibrated")
            check(row["seconds"] > 0, f"{label}: seconds")
            verify = run("verify", folder, "--json", f"{work}/verify.json")
            check(verify.returncode == 0, f"{label}: {verify.stdout}{verify.stderr}")
            verified = json.load(open(f"{work}/verify.json"))
            check(row["loaders"] == verified["loaders"], f"{label}: {row['loaders']}, not {verified['loaders']}")
            check(abs(row["bits_per_weight"] - verified["bits_per_weight"]) < 1e-3, f"{label}: {row['bits_per_weight']}, not {verified['bits_per_weight']}")
            check({l["name"]: l["loads"] for l in row["loaders"]}["vLLM"] == (label in SERVED), f"{label}: vLLM")
            figures = f"{row['perplexity']:.4f}"
            for text in (result.stdout, markdown):
                check(any(label in line and figures in line for line in text.splitlines()), f"{label} {figures} in\n{text}")

        order = [row["label"] for row in sorted(table["rows"], key=lambda row: row["perplexity"]) if row["bits"] == 4]
        line = next(line for line in table["guidance"] if line.startswith("4 bits"))
        check([line.find(f" {label} (") for label in order] == sorted(line.find(f" {label} (") for label in order) and
              all(f" {label} (" in line for label in order), f"{order} in {line}")
        check(line in result.stdout and line in markdown, line)

        # The method alone gives the same folder, model card included.
        alone = run(config, "--set", "quantize.method=awq", "--set", f"output.path={work}/alone", ranks=2)
        check(alone.returncode == 0, alone.stderr)
        compared = contents(f"{work}/out-awq")
        check("README.md" in compared and contents(f"{work}/alone") == compared, "awq: compare and quantize write different files")

        again = run("compare", config, "--methods", "bnb-fp4,rtn", ranks=2)
        check(again.returncode == 73 and "out-rtn: is not empty" in again.stderr, again.stderr)
        check(not os.path.exists(f"{work}/out-bnb-fp4"), "a used folder is found before the first method runs")

        every = run("compare", config, "--methods", "bnb-fp4,bnb-int8,fp8-block,nvfp4,mxfp4", "--set", f"output.path={work}/every/out", ranks=2)
        check(every.returncode == 0, every.stderr)
        rows = json.load(open(f"{work}/every/out.compare.json"))["rows"] if every.returncode == 0 else []
        for row in rows:
            check(agree(row["perplexity"], perplexity(row["folder"])), row["label"])
            check(row["bytes"] == tensor_bytes(row["folder"]), row["label"])
    print(f"{len(failures)} failures")
    return 1 if failures else 0


sys.exit(main())
