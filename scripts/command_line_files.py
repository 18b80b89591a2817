#!/usr/bin/env python3
"""Writes what shells and man know of the command line, from what the program's --help says: share/bash-completion/completions/qpipe,
share/zsh/site-functions/_qpipe and share/man/man1/qpipe.1.

    scripts/command_line_files.py QPIPE            writes them
    scripts/command_line_files.py QPIPE --check    fails when one is stale"""
import argparse
import dataclasses
import difflib
import os
import re
import subprocess
import sys

from help_text import all_commands, exit_codes, help_of, options, synopses, values_allowed

ROOT = os.path.normpath(os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
MADE = "made by scripts/command_line_files.py"
METHODS = "quantize.method"
PATHS = ("-o", "--out", "--data", "--eval", "--model", "--original", "--json", "--logits")


@dataclasses.dataclass
class CommandLine:
    version: str
    text: str  # qpipe --help
    options: list
    commands: list

    @property
    def settable(self):
        """What --set takes."""
        return [option for option in self.options if not option.entry and option.type != "tables"]

    @property
    def values(self):
        return {option.key: values_allowed(option) for option in self.settable if values_allowed(option)}

    @property
    def own(self):
        """Options of qpipe CONFIG.toml."""
        form = next(form for form, _ in synopses(self.text) if form.startswith("qpipe CONFIG.toml"))
        return re.findall(r"--[a-z-]+", form)

    def choices(self, argument):
        """Values of a command's option: its own, or those of the option of CONFIG.toml that its meaning names at the end."""
        named = re.search(r"\(([a-z]+\.[a-z_]+)\)$", argument.meaning)
        return argument.choices or (self.values.get(named.group(1), []) if named else [])


def command_line(qpipe):
    text = help_of(qpipe)
    version = subprocess.run([qpipe, "--version"], stdout=subprocess.PIPE, text=True, check=True).stdout.split()[1]
    return CommandLine(version, text, options(text), all_commands(qpipe))


def rates(commands):
    """The names that plan --rate takes."""
    (rate,) = [a for command in commands for a in command.arguments if "--rate" in a.names]
    return re.findall(r"([a-z-]+)=", rate.meaning)


# ----- bash

BASH = """# bash completion of qpipe, @MADE@

_qpipe_keys='@KEYS@'
_qpipe_rates='@RATES@'

# The values of an option of CONFIG.toml that can be listed.
_qpipe_values() {
  case $1 in
@VALUES@
  esac
}

# The options of a command, or of qpipe CONFIG.toml.
_qpipe_options() {
  case $1 in
@OPTIONS@
    *) echo '@OWN@' ;;
  esac
}

# What an option of a command takes: nothing, a list of values, @file, @key, @rate, @methods, or @other.
_qpipe_takes() {
  case $1:$2 in
@TAKES@
    *:--set) echo @key ;;
  esac
}

_qpipe() {
  local current=${COMP_WORDS[COMP_CWORD]} command=${COMP_WORDS[1]} option= takes i
  COMPREPLY=()
  if ((COMP_CWORD == 1)); then
    COMPREPLY=($(compgen -W '@COMMANDS@ --help --version' -- "$current"))
    [[ $current == -* ]] || COMPREPLY+=($(compgen -f -X '!*.toml' -- "$current") $(compgen -d -S / -- "$current"))
    [[ ${COMPREPLY[0]} != */ ]] || compopt -o nospace 2>/dev/null
    return
  fi
  if [[ $current == -* ]]; then
    COMPREPLY=($(compgen -W "$(_qpipe_options "$command")" -- "$current"))
    return
  fi
  # The last option; readline makes words of KEY, = and VALUE.
  local since=0
  for ((i = COMP_CWORD - 1; i > 1; i--)); do
    option=${COMP_WORDS[i]}
    [[ $option != -* ]] || break
    option=
    [[ ${COMP_WORDS[i]} == = ]] || since=$((since + 1))
  done
  takes=$([[ -z $option ]] || _qpipe_takes "$command" "$option")
  if [[ $takes == @key || $takes == @rate ]]; then
    local key=
    if [[ $current == = ]]; then
      key=${COMP_WORDS[COMP_CWORD - 1]} current=
    elif [[ ${COMP_WORDS[COMP_CWORD - 1]} == = ]]; then
      key=${COMP_WORDS[COMP_CWORD - 2]}
    elif [[ $current == *=* ]]; then
      key=${current%%=*}
      COMPREPLY=($(compgen -P "$key=" -W "$(_qpipe_values "$key")" -- "${current#*=}"))
      return
    fi
    if [[ -n $key ]]; then
      COMPREPLY=($(compgen -W "$(_qpipe_values "$key")" -- "$current"))
      [[ -n $(_qpipe_values "$key") ]] || compopt -o default 2>/dev/null
    else
      local names=$_qpipe_keys
      [[ $takes == @key ]] || names=$_qpipe_rates
      COMPREPLY=($(compgen -S = -W "$names" -- "$current"))
      compopt -o nospace 2>/dev/null
    fi
    return
  fi
  ((since == 0)) || takes=  # the value is there; what follows is an argument of the command
  case $takes in
    '' | @file) compopt -o default 2>/dev/null ;;
    @other) ;;
    @methods)
      local before=
      [[ $current != *,* ]] || before=${current%,*},
      COMPREPLY=($(compgen -P "$before" -W "$(_qpipe_values @METHODS@)" -- "${current##*,}"))
      compopt -o nospace 2>/dev/null
      ;;
    *) COMPREPLY=($(compgen -W "$takes" -- "$current")) ;;
  esac
}
complete -F _qpipe qpipe
"""


def takes(line, argument):
    if not argument.value:
        return ""
    for name, what in (("--set", "@key"), ("--rate", "@rate"), ("--methods", "@methods")):
        if name in argument.names:
            return what
    if line.choices(argument):
        return " ".join(line.choices(argument))
    return "@file" if any(name in PATHS for name in argument.names) else "@other"


def filled(template, **words):
    for name, text in words.items():
        template = template.replace(f"@{name}@", text)
    return template


def bash(line):
    cases = lambda rows: "\n".join(f"    {pattern}) echo '{words}' ;;" for pattern, words in rows)
    names = lambda command: " ".join(name for a in command.arguments for name in a.names)
    taken = [("|".join(f"{command.name}:{name}" for name in a.names), takes(line, a))
             for command in line.commands for a in command.arguments if a.names and a.value]
    return filled(BASH, MADE=MADE, KEYS=" ".join(option.key for option in line.settable), RATES=" ".join(rates(line.commands)),
                  VALUES=cases((key, " ".join(values)) for key, values in line.values.items()),
                  OPTIONS=cases((command.name, names(command)) for command in line.commands), OWN=" ".join(line.own),
                  TAKES=cases(taken), COMMANDS=" ".join(command.name for command in line.commands), METHODS=METHODS)


# ----- zsh

ZSH = """#compdef qpipe
# zsh completion of qpipe, @MADE@

# section.key=value
_qpipe_setting() {
  if compset -P 1 '*='; then
    case ${IPREFIX%=} in
@VALUES@
      *) _files ;;
    esac
  else
    local -a keys=(
@KEYS@
    )
    _describe -t keys 'option' keys -S =
  fi
}

_qpipe_rate() {
  compset -P 1 '*=' && { _message number; return }
  compadd -S = -- @RATES@
}

_qpipe_methods() { _sequence compadd -S '' -- @METHODS@ }

_qpipe() {
  if ((CURRENT == 2)); then
    local -a commands=(
@COMMANDS@
    )
    _describe -t commands command commands
    compadd -- --help --version
    _files -g '*.toml'
    return
  fi
  local command=$words[2]
  shift words
  ((CURRENT--))
  case $command in
@ARGUMENTS@
    *)
      _arguments '*--set[an option of CONFIG.toml]:option:_qpipe_setting' @OWN@ '1:configuration:_files -g "*.toml"'
      ;;
  esac
}

_qpipe "$@"
"""


def quoted(text):
    """Between single quotes of the shell."""
    return text.replace("'", "'\\''")


def spec_text(text):
    """Inside [...] and between colons of a specification of _arguments."""
    return quoted(re.sub(r"([\[\]:\\])", r"\\\1", text))


def zsh_argument(line, argument):
    def action():
        what = takes(line, argument)
        actions = {"@key": "_qpipe_setting", "@rate": "_qpipe_rate", "@methods": "_qpipe_methods", "@file": "_files", "@other": ""}
        return actions.get(what, f"({what})")

    if not argument.names:
        several = "*" if argument.name.endswith("s") else ""
        return f"'{several}:{argument.name}:_files'"
    value = f":{argument.value.lower()}:{action()}" if argument.value else ""
    repeated = "*" if argument.names[0] in ("--set", "--rate") else ""
    first = argument.meaning.split(": forward=")[0]
    if len(argument.names) == 1:
        return f"'{repeated}{argument.names[0]}[{spec_text(first)}]{value}'"
    return f"'({' '.join(argument.names)})'{{{','.join(argument.names)}}}'[{spec_text(first)}]{value}'"


def zsh(line):
    described = lambda name, meaning: f"      '{name}:{quoted(meaning.replace(':', chr(92) + ':'))}'"
    arguments = []
    for command in line.commands:
        lines = " \\\n        ".join(zsh_argument(line, a) for a in command.arguments)
        arguments.append(f"    {command.name})\n      _arguments \\\n        {lines}\n      ;;")
    methods = " ".join(line.values[METHODS])
    return filled(ZSH, MADE=MADE, VALUES="\n".join(f"      {key}) compadd -- {' '.join(v)} ;;" for key, v in line.values.items()),
                  KEYS="\n".join(described(o.key, o.meaning) for o in line.settable), RATES=" ".join(rates(line.commands)), METHODS=methods,
                  COMMANDS="\n".join(described(c.name, c.meaning) for c in line.commands), ARGUMENTS="\n".join(arguments),
                  OWN=" ".join(name for name in line.own if name != "--set"))


# ----- man

MAN = """.\\" @MADE@
.TH QPIPE 1 "" "qpipe @VERSION@" "User commands"
.nh
.ad l
.SH NAME
qpipe \\- quantize large language models on many GPUs
.SH SYNOPSIS
@SYNOPSIS@
.SH DESCRIPTION
.B qpipe
reads a Hugging Face checkpoint, quantizes its weights with GPTQ, AWQ, round to nearest, bitsandbytes NF4, FP4 or INT8, FP8, NVFP4 or MXFP4, and writes a
checkpoint that transformers, vLLM, GPTQModel, AutoAWQ, compressed\\-tensors or bitsandbytes load as it is.
Started by
.BR mpirun (1)
or
.BR srun (1)
it takes one GPU for each rank; without a GPU it computes on the CPU.
The checkpoint has the same bytes for any number of ranks.
.PP
A run that was stopped goes on when the same command is given again.
.SH COMMANDS
@COMMANDS@
.SH OPTIONS OF CONFIG.TOML
Each is set in the file, or for one run by
.BI \\-\\-set\\~ section.key=value\\fR.
@OPTIONS@
.SH EXIT STATUS
@EXIT@
Each fault is one line on the standard error that says what, where and what to do.
.SH SIGNALS
.BR SIGUSR1 ,
.BR SIGTERM ,
.BR SIGINT ,
.B SIGHUP
or
.B SIGXCPU
to any rank: all ranks finish the layer, write it, and end with 75.
A second one stops them after the current step, a third at once.
.SH ENVIRONMENT
.TP
.BR HF_HOME ,\\~ HF_TOKEN ,\\~ HF_ENDPOINT ,\\~ HF_HUB_OFFLINE
as for huggingface_hub, by which models and data of the hub are fetched and pushed.
.TP
.B QPIPE_PYTHON
the Python that has the packages of
.IR scripts/requirements.in ,
instead of that in
.IR .venv .
.TP
.B OMP_NUM_THREADS
CPU threads of each rank, where parallel.threads does not say.
.TP
.B XDG_CACHE_HOME
where tokenized text is kept, in the folder
.IR qpipe ;
without it
.IR ~/.cache/qpipe .
.TP
.B SOURCE_DATE_EPOCH
the date that chat templates write.
.SH FILES
.TP
.I OUTPUT.run
what an unfinished run has done; it goes on from there.
.TP
.I OUTPUT.report.json
the error of each module, perplexities and times.
.TP
.I OUTPUT/qpipe_files.json
the files that a run wrote, with hashes.
.SH EXAMPLES
.EX
qpipe quantize Qwen/Qwen3\\-0.6B \\-\\-bits 4 \\-o out/Qwen3\\-0.6B\\-4bit
qpipe plan 70b.toml \\-\\-ranks 8 \\-\\-gpu\\-memory 22GiB
mpirun \\-np 8 qpipe 70b.toml \\-\\-set output.path=out/70b
.EE
.SH SEE ALSO
.BR mpirun (1),
.BR srun (1),
and the documents in
.IR share/doc/qpipe .
"""


def roff(text):
    """Of plain text: what begins a request, and signs that roff would change."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("`", "\\(ga").replace("^", "\\(ha").replace("~", "\\(ti")
    return "\\&" + text if text.startswith(".") else text


def man_argument(argument):
    names = ", ".join(f"\\fB{roff(name)}\\fR" for name in argument.names) or f"\\fI{argument.name}\\fR"
    value = f" \\fI{argument.value}\\fR" if argument.value and argument.names else ""
    return f".TP\n{names}{value}\n{roff(argument.meaning)}"


def man_option(option):
    facts = [option.type] + ([f"default {option.default}"] if option.default not in ("none", "unset") else []) + ([option.unit] if option.unit else [])
    key = f"{option.section}.{option.entry}: {option.name}" if option.entry else option.key
    return f".TP\n.BR {roff(key).replace(' ', chr(92) + '~')} \"{chr(92)}~({roff(', '.join(facts)).replace(chr(34), chr(92) + '(dq')})\"\n{roff(option.meaning)}"


def man(line):
    forms = "\n.br\n".join(f"{roff(form)}" for form, _ in synopses(line.text))
    parts = [f".SS qpipe CONFIG.toml\n{roff(synopses(line.text)[0][1])}"]
    for command in line.commands:
        parts.append("\n".join([f".SS qpipe {command.name}", roff(command.meaning), *map(man_argument, command.arguments)]))
    return filled(MAN, MADE=MADE, VERSION=line.version, SYNOPSIS=forms, COMMANDS="\n".join(parts), OPTIONS="\n".join(map(man_option, line.options)),
                  EXIT=roff(exit_codes(line.text)))


FILES = {"share/bash-completion/completions/qpipe": bash, "share/zsh/site-functions/_qpipe": zsh, "share/man/man1/qpipe.1": man}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("qpipe")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    line, stale = command_line(args.qpipe), 0
    for name, write in FILES.items():
        path, text = os.path.join(ROOT, name), write(line)
        if not args.check:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "w") as f:
                f.write(text)
            continue
        with open(path) as f:
            stored = f.read()
        if stored != text:
            print("\n".join(difflib.unified_diff(stored.splitlines(), text.splitlines(), name, "made now", lineterm="", n=0)))
            stale = 1
    if stale:
        print(f"stale: {sys.argv[0]} {args.qpipe} makes them anew")
    return stale


if __name__ == "__main__":
    sys.exit(main())
