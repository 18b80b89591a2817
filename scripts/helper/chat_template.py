"""A model's chat template: found and rendered as transformers 5.24 does it (utils/chat_template_utils.py)."""

import json
import os
import re
from datetime import datetime, timezone

from child import fail, fail_without

RESTORE = "restore the model's original file"
NAMED_TOKENS = re.compile(r"[a-z_]+_token$")


def read_json(folder, name):
    path = os.path.join(folder, name)
    if not os.path.isfile(path):
        return {}
    try:
        with open(path, encoding="utf-8") as file:
            value = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        fail(65, f"{path} cannot be read ({error}); {RESTORE}")
    if not isinstance(value, dict):
        fail(65, f"{path} is not a JSON object; {RESTORE}")
    return value


def read_text(path):
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        fail(65, f"{path} cannot be read ({error}); {RESTORE}")


def find_templates(folder):
    """Name to (file, template). Files come before tokenizer_config.json; chat_template.json is what processors had."""
    found = {}
    single = os.path.join(folder, "chat_template.jinja")
    more = os.path.join(folder, "additional_chat_templates")
    if os.path.isfile(single):
        found["default"] = (single, read_text(single))
    for name in sorted(os.listdir(more)) if os.path.isdir(more) else []:
        if name.endswith(".jinja"):
            found[name.removesuffix(".jinja")] = (os.path.join(more, name), read_text(os.path.join(more, name)))
    for name in () if found else ("tokenizer_config.json", "chat_template.json"):
        path, value = os.path.join(folder, name), read_json(folder, name).get("chat_template")
        if isinstance(value, str):
            return {"default": (path, value)}
        if isinstance(value, list):
            named = [entry for entry in value if isinstance(entry, dict)]
            return {entry.get("name"): (path, entry.get("template")) for entry in named if isinstance(entry.get("template"), str)}
    return found


def special_tokens(folder):
    """bos_token, eos_token and others by name, which templates write."""
    config = read_json(folder, "tokenizer_config.json")
    sources = [config] if "added_tokens_decoder" in config else [config, read_json(folder, "special_tokens_map.json")]
    tokens = {}
    for source in sources:
        extra = source.get("extra_special_tokens")
        for name, value in [*source.items(), *(extra.items() if isinstance(extra, dict) else ())]:
            text = value.get("content") if isinstance(value, dict) else value
            if NAMED_TOKENS.fullmatch(name) and isinstance(text, str):
                tokens[name] = text
    return tokens


def now():
    """SOURCE_DATE_EPOCH holds for templates that write the date, so that a run can be repeated."""
    fixed = os.environ.get("SOURCE_DATE_EPOCH", "")
    return datetime.fromtimestamp(int(fixed), timezone.utc) if fixed.isdecimal() else datetime.now()


def make_environment():
    try:
        import jinja2
        import jinja2.ext
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as error:
        fail_without("jinja2", error)
    if tuple(int(part) for part in re.findall(r"\d+", jinja2.__version__)[:3]) < (3, 1, 6):
        fail_without("jinja2", f"version {jinja2.__version__}, whose sandbox lets templates out; 3.1.6 is needed")

    class Generation(jinja2.ext.Extension):
        """{% generation %} marks what the assistant says: its text is its body."""

        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

        @jinja2.pass_eval_context
        def _body(self, context, caller):
            return caller()

    class TemplateDict:
        def __call__(self, *args, **kwargs):
            return dict(*args, **kwargs)

        def fromkeys(self, *args, **kwargs):
            return dict.fromkeys(*args, **kwargs)

    class TemplateNamespace(jinja2.utils.Namespace):
        """Takes no name that leads into CPython."""

        def __init__(*args, **kwargs):
            self, args = args[0], args[1:]
            attributes = dict(*args, **kwargs)
            for name in attributes:
                TemplateNamespace._check_name(name)
            jinja2.utils.Namespace.__init__(self, attributes)

        def __setitem__(self, name, value):
            TemplateNamespace._check_name(name)
            jinja2.utils.Namespace.__setitem__(self, name, value)

        @staticmethod
        def _check_name(name):
            if isinstance(name, str) and name.startswith("_"):
                raise jinja2.exceptions.SecurityError(f"a namespace's attribute {name!r} begins with an underscore")

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda format: now().strftime(format)
    environment.globals["dict"] = TemplateDict()
    environment.globals["namespace"] = TemplateNamespace
    return environment


def with_reasoning(message):
    """A message's reasoning has had three names; templates read the first, gpt-oss's the second."""
    reasoning = next((message[key] for key in ("reasoning_content", "thinking", "reasoning") if message.get(key) is not None), None)
    return message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}


class ChatTemplate:
    """The templates of a model's folder."""

    def __init__(self, folder):
        self.templates = find_templates(folder)
        if not self.templates:
            fail(65, f"the rows are chats, and {folder or '.'} has no chat template (chat_template.jinja, or chat_template in tokenizer_config.json); add "
                     f"the model's, or give text")
        self.tokens = special_tokens(folder)
        self.environment = make_environment()
        self.compiled = {}

    def choose(self, tools):
        name = "tool_use" if tools is not None and "tool_use" in self.templates else "default"
        if name not in self.templates:
            fail(65, f"the model's folder has chat templates called {', '.join(sorted(map(str, self.templates)))}, and none for ordinary chats "
                     f"(default); add chat_template.jinja")
        return name

    def source(self, tools):
        return self.templates[self.choose(tools)][1]

    def render(self, messages, tools):
        """Raises what the template raises."""
        name = self.choose(tools)
        if name not in self.compiled:
            path, source = self.templates[name]
            try:
                self.compiled[name] = self.environment.from_string(source)
            except Exception as error:
                line = f" line {error.lineno}" if getattr(error, "lineno", None) else ""
                fail(65, f"{path} has a chat template that Jinja cannot read (template {name}{line}: {error}); {RESTORE}")
        given = [with_reasoning({key: value for key, value in message.items() if value is not None}) for message in messages]
        return self.compiled[name].render(messages=given, tools=tools, documents=None, add_generation_prompt=False, **self.tokens)
