"""Makes tokenizer.model, tokenizer_config.json, rows.jsonl and ids.json: a small SentencePiece model of the novels in data/, rows, and the ids that transformers'
LlamaTokenizer gives them. Needs sentencepiece and transformers.

No text begins with a space, nor does one behind a special token: there transformers leaves out the space that SentencePiece puts in front of each text, and
qpipe does as SentencePiece does."""

import gzip
import json
import pathlib

import sentencepiece
from transformers import AutoTokenizer

here = pathlib.Path(__file__).parent
books = [gzip.open(path, "rt", encoding="utf-8").read() for path in sorted((here.parents[2] / "data").glob("[emp]*.txt.gz"))]
lines = [line for book in books for line in book.splitlines() if line.strip()][:20000]
sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(lines), model_prefix=str(here / "tokenizer"), vocab_size=500, model_type="bpe", byte_fallback=True,
    normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True, character_coverage=0.9995, minloglevel=2)
(here / "tokenizer.vocab").unlink()
special = [{"content": text, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True} for text in ("<unk>", "<s>", "</s>")]
(here / "tokenizer_config.json").write_text(json.dumps({
    "tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, "legacy": False, "bos_token": "<s>", "eos_token": "</s>",
    "unk_token": "<unk>", "added_tokens_decoder": {str(i): token for i, token in enumerate(special)},
    "chat_template": "{{ bos_token }}{% for m in messages %}[INST]{{ m.content }}[/INST]{{ eos_token }}{% endfor %}"}, indent=1))
(here / "config.json").write_text('{"model_type": "llama", "eos_token_id": 2, "vocab_size": 500}')
texts = ["the man and the book", "Sir Walter Elliot, of Kellynch Hall,\n\nin  Somersetshire\t1818", "caf\u00e9 \u65e5\u672c\u8a9e \U0001f600", "one</s>two<s>three", ""]
chats = [[{"role": "user", "content": "hello there</s>you"}], [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b c"}]]
tokenizer = AutoTokenizer.from_pretrained(here)
(here / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*({"text": t} for t in texts), *({"messages": c} for c in chats)]))
(here / "ids.json").write_text(json.dumps([tokenizer.encode(t) for t in texts] + [tokenizer.apply_chat_template(c, return_dict=False) for c in chats]) + "\n")
