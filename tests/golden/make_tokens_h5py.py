"""Makes tokens_h5py.h5: token ids as h5py stores them, in all integer types and with the faults that a file can have."""

import pathlib

import h5py
import numpy as np

ids = np.arange(5 * 8).reshape(5, 8) % 97
with h5py.File(pathlib.Path(__file__).parent / "tokens_h5py.h5", "w") as file:
    for dtype in ("int32", "int64", "uint16", "uint32", "uint8"):
        file[f"as_{dtype}"] = ids.astype(dtype)
    file.create_dataset("calib/chunked", data=ids.astype(">i4"), chunks=(2, 3), compression="gzip")
    file["float"] = ids.astype("float32")
    file["flat"] = ids[0]
    file["three"] = ids.reshape(5, 2, 4)
    file["empty"] = np.zeros((0, 8), "int32")
    file["scalar"] = np.int32(3)
    for name, value in (("huge", 2**40), ("negative", -1)):
        file[name] = ids.astype("int64")
        file[name][3, 2] = value
