"""Makes text.jsonl.gz, ids.json and ids_with_bos.json: documents and the ids that the package tokenizers gives them, called directly.

tokenizer.json is the byte-level BPE of 320 tokens of the tiny reference models; in with_bos/ its post-processor adds <s> in front,
and it asks for truncation to 8 tokens and padding, which must not happen to data.
"""

import gzip
import json
import pathlib

from tokenizers import Tokenizer

here = pathlib.Path(__file__).parent
documents = [
    "Sir Walter Elliot, of Kellynch Hall, in Somersetshire, was a man who, for his own amusement, never took up any book but the Baronetage.",
    "",
    "the  man\n\nand\tthe 1818 years\r\n",
    "caf\u00e9 \u65e5\u672c\u8a9e \U0001f600",
    "</s> is a special token, <s>too",
    " leading and trailing ",
]

plain = Tokenizer.from_file(str(here / "tokenizer.json"))
with_bos = json.loads((here / "tokenizer.json").read_text())
bos = {"SpecialToken": {"id": "<s>", "type_id": 0}}
text = {"Sequence": {"id": "A", "type_id": 0}}
with_bos["post_processor"]["single"] = [bos, text]
with_bos["post_processor"]["special_tokens"] = {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}
(here / "with_bos").mkdir(exist_ok=True)
(here / "with_bos/config.json").write_text((here / "config.json").read_text())
untruncated = Tokenizer.from_str(json.dumps(with_bos))
with_bos["truncation"] = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
with_bos["padding"] = {"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>"}
(here / "with_bos/tokenizer.json").write_text(json.dumps(with_bos, ensure_ascii=False))

lines = "".join(json.dumps({"id": i, "text": d}) + "\n" for i, d in enumerate(documents))
(here / "text.jsonl.gz").write_bytes(gzip.compress(lines.encode(), mtime=0))
(here / "ids.json").write_text(json.dumps([plain.encode(d).ids for d in documents]))
(here / "ids_with_bos.json").write_text(json.dumps([untruncated.encode(d).ids for d in documents]))
