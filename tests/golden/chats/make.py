"""Makes what is compared with transformers' apply_chat_template, token for token: for each family FAMILY/tokenizer.json, tokenizer_config.json,
rows.jsonl and ids.json. make.py --check says whether transformers still gives these ids. Needs transformers.

The templates are written for these tests, after the behaviour of the families' own. The tokenizer is tests/golden/tokenizer's with the families'
special tokens. Llama 3's templates stand in tokenizer_config.json as a list of two, Gemma 3's as one; the others are files. What Llama 3 takes for today
is 2024-12-24.
"""

import datetime
import json
import pathlib
import sys

here = pathlib.Path(__file__).parent
TODAY = datetime.datetime(2024, 12, 24)  # SOURCE_DATE_EPOCH = 1735041600 is noon of it
SPECIAL = {
    "llama3": ("<|begin_of_text|>", "<|eot_id|>", ["<|start_header_id|>", "<|end_header_id|>"]),
    "qwen3": (None, "<|im_end|>", ["<|im_start|>", "<|endoftext|>", "<think>", "</think>", "<tool_call>", "</tool_call>"]),
    "gemma3": ("<bos>", "<eos>", ["<start_of_turn>", "<end_of_turn>", "<start_of_image>"]),
    "mistral": ("<s>", "</s>", ["[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"]),
}

WEATHER = {"type": "function", "function": {"name": "weather", "description": "The weather in a <town> & \"more\"", "parameters": {
    "type": "object", "properties": {"town": {"type": "string", "description": "caf\u00e9"}, "days": {"type": "integer"}}, "required": ["town"]}}}
CALL = {"role": "assistant", "tool_calls": [{"type": "function", "id": "abcdefgh1", "function": {"name": "weather", "arguments": {"town": "Bath", "days": 2}}}]}


def chat(*contents, system=None):
    messages = [{"role": "user" if i % 2 == 0 else "assistant", "content": content} for i, content in enumerate(contents)]
    return [{"role": "system", "content": system}] * (system is not None) + messages


def rows_of(family):
    plain = chat("Who was Sir Walter Elliot?", " A man who took up no book but the Baronetage.\n")
    yield {"messages": plain}
    yield {"messages": chat("a", "b", "c", "d", system="You are a man of few words."), "id": 7}
    yield {"messages": chat("caf\u00e9 \u65e5\u672c\u8a9e \U0001f600\r\n", "<b>&amp;\"'</b> {{ 1 + 1 }} {% raw %}", "</s><|im_end|><end_of_turn>[INST] in a text", "")}
    yield {"conversations": [{"from": "human", "value": "the man"}, {"from": "gpt", "value": "and the book"}]}
    yield {"prompt": chat("of the man", system="s"), "completion": [{"role": "assistant", "content": "and the years", "name": None}]}
    if family in ("llama3", "qwen3"):
        yield {"messages": chat("rain?") + [CALL, {"role": "tool", "content": "{\"rain\": 0.50}"}, {"role": "assistant", "content": "none"}]}
        yield {"messages": chat("rain?", "no", system="s"), "tools": [WEATHER, WEATHER]}
    if family == "llama3":
        yield {"messages": chat("rain?") + [CALL | {"content": None}, {"role": "ipython", "content": {"rain": [0.5, None, True]}}]}
    if family == "qwen3":
        yield {"messages": chat("2 + 2") + [{"role": "assistant", "content": "4", "reasoning_content": "\nadd\n"}]}
        yield {"messages": chat("2 + 2", "<think>\nadd\n</think>\n\n4", "and 1?", "<think>\nagain</think>5")}
        yield {"messages": chat("rain?") + [{"role": "assistant", "content": "let me see", "thinking": "hm", "tool_calls": CALL["tool_calls"] * 2},
                                             {"role": "tool", "content": "a"}, {"role": "tool", "content": "b"}, {"role": "assistant", "content": "dry"}],
               "tools": json.dumps([WEATHER])}
    if family == "gemma3":
        yield {"messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": " what is it? "}]}, {"role": "assistant", "content": "a book"}]}
        yield {"messages": [{"role": "system", "content": [{"type": "text", "text": "be kind"}]}] + plain}
    if family == "mistral":
        yield {"messages": chat("rain?") + [CALL, {"role": "tool", "tool_call_id": "abcdefgh1", "content": 0.5}, {"role": "assistant", "content": "dry"}], "tools": [WEATHER]}


def messages_of(row):
    turns = row.get("messages") or row.get("conversations") or row["prompt"] + row["completion"]
    roles = {"human": "user", "gpt": "assistant"}
    return [turn if "role" in turn else {"role": roles[turn["from"]], "content": turn["value"]} for turn in turns]


def write_model(family, folder):
    bos, eos, others = SPECIAL[family]
    tokenizer = json.loads((here.parent / "tokenizer/tokenizer.json").read_text())
    known = {token["content"] for token in tokenizer["added_tokens"]}
    names = [name for name in (bos, eos, *others) if name and name not in known]
    for number, name in enumerate(names, 320):
        tokenizer["added_tokens"].append(tokenizer["added_tokens"][0] | {"id": number, "content": name})
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": {"content": eos, "__type": "AddedToken"} if family == "mistral" else eos}
    config |= {"bos_token": bos} if bos else {"bos_token": None}
    if family == "llama3":
        config["chat_template"] = [{"name": "default", "template": (here / family / "template.jinja").read_text()},
                                   {"name": "tool_use", "template": (here / family / "tool_use.jinja").read_text()}]
    if family == "gemma3":
        config["chat_template"] = (here / family / "template.jinja").read_text()
        config["image_token"] = "<start_of_image>"
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False))
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1))


def ids_of(family):
    import transformers.utils.chat_template_utils as chats
    from transformers import AutoTokenizer

    class Today(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return TODAY

    chats.datetime = Today
    tokenizer = AutoTokenizer.from_pretrained(here / family)
    for line in (here / family / "rows.jsonl").read_text().splitlines():
        row = json.loads(line)
        tools = row.get("tools")
        tools = json.loads(tools) if isinstance(tools, str) else tools
        yield tokenizer.apply_chat_template(messages_of(row), tools=tools, tokenize=True, return_dict=False)


def main():
    for family in SPECIAL:
        folder = here / family
        if "--check" not in sys.argv:
            write_model(family, folder)
            (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows_of(family)))
            (folder / "ids.json").write_text(json.dumps(list(ids_of(family))) + "\n")
        elif list(ids_of(family)) != json.loads((folder / "ids.json").read_text()):
            sys.exit(f"{family}: transformers gives other ids than {folder / 'ids.json'}")


if __name__ == "__main__":
    main()
