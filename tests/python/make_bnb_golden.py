"""Writes tests/golden/bnb_golden.h: inputs and what bitsandbytes makes of them on the CPU.

    python3 tests/python/make_bnb_golden.py > tests/golden/bnb_golden.h     needs torch and bitsandbytes (made with 0.50.2)
"""

import bitsandbytes
import bitsandbytes.functional as F
import torch
from bitsandbytes.backends.default.ops import _get_4bit_quantize_bounds

torch.manual_seed(5)
infinity = torch.tensor(float("inf"))
lines = []


def emit(name, tensor):
    tensor = tensor.contiguous().flatten()
    size = tensor.element_size()
    bits = tensor.view({1: torch.uint8, 2: torch.int16, 4: torch.int32}[size]).tolist()
    width = 2 * size
    words = [f"0x{x & (1 << 8 * size) - 1:0{width}x}" for x in bits]
    lines.append(f"inline constexpr std::uint{8 * size}_t {name}[] = {{")
    per_line = 128 // (width + 4)
    lines.extend("    " + ", ".join(words[i : i + per_line]) + "," for i in range(0, len(words), per_line))
    lines.append("};")


# Blocks whose maximum is 1 hold every threshold and its two neighbours.
blocks = []
for kind in ("nf4", "fp4"):
    t = _get_4bit_quantize_bounds(kind, torch.device("cpu"))[0]
    near = torch.cat([t, torch.nextafter(t, infinity), torch.nextafter(t, -infinity)])
    blocks.append(torch.cat([torch.tensor([1.0, -1.0, 0.0, -0.0, 0.5]), near, torch.zeros(64 - 5 - len(near))]))
blocks += [torch.randn(64) * scale for scale in (0.02, 0.02, 0.02, 1e-3, 3.0, 100.0)]
blocks += [torch.zeros(64), torch.randn(64) * 1e-39, torch.full((64,), -0.25), torch.randn(64) * 1e-6]
weight = torch.cat(blocks + [torch.randn(37) * 0.02])
emit("weight", weight)
for dtype, dtype_name in ((torch.float32, "f32"), (torch.bfloat16, "bf16"), (torch.float16, "f16")):
    for kind in ("nf4", "fp4"):
        for block in (64, 256):
            packed, state = F.quantize_4bit(weight.to(dtype), blocksize=block, quant_type=kind)
            emit(f"packed_{kind}_{dtype_name}_{block}", packed)
            emit(f"absmax_{kind}_{dtype_name}_{block}", state.absmax)
            if block == 64:
                emit(f"value_{kind}_{dtype_name}", F.dequantize_4bit(packed, state))

# Maxima on a grid, so that their sum, and with it the offset, is exact in any order.
absmax = (torch.rand(256 + 44) * 400 + 20).round() / 4096
offset = absmax.mean()
code, state = F.quantize_blockwise(absmax - offset, blocksize=256)
emit("maxima", absmax)
emit("maxima_offset", offset)
emit("maxima_code", code)
emit("maxima_nested", state.absmax)
emit("maxima_value", F.dequantize_blockwise(code, state) + offset)
# Every step of the map: y runs over [-1, 1] when the mean is 0 ... which maxima are not, so mirror them around 1.
ramp = torch.linspace(-1, 1, 255, dtype=torch.float32).mul(1024).round() / 1024
ramp = torch.cat([ramp, torch.zeros(1), (torch.arange(64).float() - 31.5) / 65536]) + 1.0
code, state = F.quantize_blockwise(ramp - ramp.mean(), blocksize=256)
emit("ramp", ramp)
emit("ramp_offset", ramp.mean())
emit("ramp_code", code)
emit("ramp_nested", state.absmax)
emit("dynamic_map_bits", F.create_dynamic_map())

rows = torch.randn(6, 40) * 0.05
rows[1] = 0.0
rows[2] = torch.arange(40) - 20 + 0.5
rows[2, 0] = 127.0  # scale 1: the others are ties
rows[3] *= 1e-6  # subnormal in float16
rows[4, 3] = 60000.0
rows[5] = 1.0 / 3.0
for dtype, dtype_name in ((torch.float32, "f32"), (torch.bfloat16, "bf16"), (torch.float16, "f16")):
    code, scb, _ = F.int8_vectorwise_quant(rows.to(dtype).to(torch.float16))
    emit(f"int8_code_{dtype_name}", code.view(torch.uint8))
    emit(f"int8_scb_{dtype_name}", scb)
    emit(f"int8_value_{dtype_name}", torch.ops.bitsandbytes.int8_vectorwise_dequant(code, scb).to(dtype))
emit("rows", rows)

print(f"// Made by tests/python/make_bnb_golden.py with bitsandbytes {bitsandbytes.__version__} on a CPU: bits of inputs and answers.")
print("// clang-format off\n#pragma once\n\n#include <cstdint>\n\nnamespace qpipe::golden {\n")
print("\n".join(lines))
print("\n}  // namespace qpipe::golden")
