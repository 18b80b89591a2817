"""Rows that hold more than a text: chats, through the model's template, and prompts with their completions."""

import json
import signal

from chat_template import ChatTemplate
from child import allow, fail

SECONDS_OF_A_ROW = 10
ROLES = ("system", "developer", "user", "assistant", "tool", "function")
# What turns are called where they have "from" and "value".
ROLE_OF_TURN = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant",
    "model": "assistant", "system": "system", "tool": "tool", "observation": "tool", "function": "tool",
}


def message_of(turn):
    """A message with role and content, of a turn with either pair of names; None where it has neither."""
    if not isinstance(turn, dict):
        return None
    if isinstance(turn.get("role"), str):
        return turn
    if isinstance(turn.get("from"), str) and "value" in turn:
        return {"role": ROLE_OF_TURN.get(turn["from"], turn["from"]), "content": turn["value"]}
    return None


def valid(text):
    """Halves of surrogate pairs, which JSON can hold, are no text."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def too_slow(signal_number, frame):
    raise TimeoutError(f"it does not come to an end in {SECONDS_OF_A_ROW} s")


class Rows:
    def __init__(self, folder, text_field):
        self.folder, self.text_field = folder, text_field
        self.template = None

    def text_of(self, text, row):
        """The text, and whether its special tokens are in it already."""
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            fail(65, f"row {row}: is not JSON ({error}); mend the row or remove it")
        if not isinstance(record, dict):
            fail(65, f"row {row}: is not a JSON object; each row must be one")
        for field in (self.text_field, "messages", "conversations"):
            if isinstance(record.get(field), list):
                return self.render(record[field], record.get("tools"), row), True
        prompt, completion = record.get("prompt"), record.get("completion")
        if isinstance(prompt, str) and isinstance(completion, str):
            return valid(prompt + completion), False
        if isinstance(prompt, list) and isinstance(completion, list):
            return self.render(prompt + completion, record.get("tools"), row), True
        fail(65, f"row {row}: prompt and completion must both be strings or both lists of messages; mend the row or remove it")

    def render(self, turns, tools, row):
        self.template = self.template or ChatTemplate(self.folder)
        tools = self.tools_of(tools, row)
        messages = [message_of(turn) for turn in turns]
        if not messages:
            fail(65, f"row {row}: the chat has no messages; remove the row")
        for number, message in enumerate(messages, 1):
            if message is None:
                fail(65, f"row {row}: message {number} has neither role and content nor from and value; mend the row or remove it")
            role = message["role"]
            if role not in ROLES and role not in self.template.source(tools):
                fail(65, f"row {row}: message {number} has the role {json.dumps(role)}, which the model's chat template does not know; use one of "
                         f"{', '.join(ROLES)}, or remove the row")
        # Its own processor time, and an end that says which row it was.
        before = signal.signal(signal.SIGPROF, too_slow)
        allow(SECONDS_OF_A_ROW)
        try:
            return valid(self.template.render(messages, tools))
        except Exception as error:
            fail(65, f"row {row}: the model's chat template refuses it ({type(error).__name__}: {error}); mend the row or remove it")
        finally:
            allow(0)
            signal.signal(signal.SIGPROF, before)

    @staticmethod
    def tools_of(tools, row):
        if isinstance(tools, str) and tools.strip():
            try:
                tools = json.loads(tools)
            except ValueError:
                fail(65, f"row {row}: tools is no list of JSON schemas; mend the row or remove it")
        if not tools:
            return None
        if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
            fail(65, f"row {row}: tools is no list of JSON schemas; mend the row or remove it")
        return tools
