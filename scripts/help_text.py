"""What `qpipe --help` and `qpipe COMMAND --help` list, as data: the options of CONFIG.toml, the commands and their options."""
import dataclasses
import re
import subprocess

COLUMNS = ("option", "type", "default", "unit", "meaning")


@dataclasses.dataclass
class Option:
    """Of CONFIG.toml. `entry` is the table that it is a key of: "mix" of [[calibration.mix]]."""

    section: str
    entry: str
    name: str
    type: str
    default: str
    unit: str
    meaning: str

    @property
    def key(self):
        return f"{self.section}.{self.name}"


@dataclasses.dataclass
class Argument:
    """Of a command: names ("-o", "--output") of an option, or none of a positional argument."""

    names: list
    name: str
    value: str  # "" of a flag
    meaning: str
    choices: list


@dataclasses.dataclass
class Command:
    name: str
    meaning: str
    arguments: list


def help_of(qpipe, *command):
    return subprocess.run([qpipe, *command, "--help"], stdout=subprocess.PIPE, text=True, check=True).stdout


def options(text):
    """Of the table at the end of `qpipe --help`."""
    table = text[text.index("Options of CONFIG.toml:") :].splitlines()
    head = next(line for line in table if line.split()[:1] == ["option"])
    starts = [head.index(column) for column in COLUMNS] + [None]
    section, entry, found = "", "", []
    for line in table[table.index(head) + 1 :]:
        if line.startswith("["):
            section, entry = line.strip("[]"), ""
        elif line.strip():
            if any(line[start - 1 : start].strip() for start in starts[1:-1]):
                raise ValueError(f"not in columns: {line}")
            name, *words = [line[a:b].strip() for a, b in zip(starts, starts[1:])]
            nested = line.startswith("    ")
            found.append(Option(section, entry if nested else "", name, *words))
            if not nested:
                entry = name
    return found


def commands(text):
    """Their names, from the synopses of `qpipe --help`."""
    return re.findall(r"^  qpipe ([a-z]+)\b", text, re.M)


WIDTH = 30  # of the left column in a command's help


def command(qpipe, name):
    """Two columns; a name that is too long stands in a line of its own."""
    lines = help_of(qpipe, name).splitlines()
    found, kind, left = [], "", ""
    for line, following in zip(lines, lines[1:] + [""]):
        if line in ("Positionals:", "Options:"):
            kind = line
        elif kind and line.strip():
            if line[:WIDTH].strip():
                left = line.strip()
                if following.startswith(" " * WIDTH):
                    continue
                left = line[:WIDTH].strip()
            found.append(argument(kind, left, line[WIDTH:].strip()))
    return Command(name, lines[0], found)


def argument(kind, left, meaning):
    name, _, value = left.partition(" ")
    choices = re.search(r"\{(.*?)\}", value)
    value = "" if not value else value.split()[0].split(":")[0].split("=")[0]
    names = name.split(",") if kind == "Options:" else []
    return Argument(names, name, value, meaning, choices.group(1).split(",") if choices else [])


def synopses(text):
    """The forms of the call, each in one line, with its meaning: of `qpipe --help`, up to the exit codes."""
    found = []
    for line in text[: text.index("Exit codes:")].splitlines()[1:]:
        if line.startswith("  qpipe "):
            found.append([line.strip(), ""])
        elif line.startswith(" " * 12):
            found[-1][0] += " " + line.strip()
        elif line.strip():
            found[-1][1] += " " + line.strip()
    return [(form, meaning.strip()) for form, meaning in found]


def exit_codes(text):
    """The paragraph without its head."""
    return " ".join(text[text.index("Exit codes:") : text.index("Options of CONFIG.toml:")].split())[len("Exit codes: ") :]


def values_allowed(option):
    """Of an option of CONFIG.toml: those that can be listed."""
    if option.type == "boolean":
        return ["true", "false"]
    listed = re.search(r"\(one of ([^()]*)\)$", option.meaning)
    return listed.group(1).split(", ") if listed else []


def all_commands(qpipe):
    return [command(qpipe, name) for name in commands(help_of(qpipe))]
