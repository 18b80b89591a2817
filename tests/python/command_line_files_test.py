#!/usr/bin/env python3
"""command_line_files_test.py QPIPE. The completions of bash and zsh and the man page have every command and option that --help lists, and work: bash's is
called as readline does, with the words that it makes; zsh and a formatter of man pages look at theirs where they are installed."""
import os
import shutil
import subprocess
import sys
import tempfile
import unittest

ROOT = os.path.normpath(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))
sys.path.append(os.path.join(ROOT, "scripts"))
from help_text import all_commands, help_of, options, values_allowed

QPIPE = ""
BASH, ZSH, MAN = ("share/bash-completion/completions/qpipe", "share/zsh/site-functions/_qpipe", "share/man/man1/qpipe.1")


def text_of(name):
    with open(os.path.join(ROOT, name)) as f:
        return f.read()


def completed(*words):
    """What bash offers for the last word."""
    script = f"source {ROOT}/{BASH}\nCOMP_WORDS=(\"$@\") COMP_CWORD=$(($# - 1))\n_qpipe\nprintf '%s\\n' \"${{COMPREPLY[@]}}\""
    with tempfile.TemporaryDirectory() as folder:
        open(os.path.join(folder, "run.toml"), "w").close()
        open(os.path.join(folder, "notes.txt"), "w").close()
        run = subprocess.run(["bash", "-c", script, "bash", "qpipe", *words], cwd=folder, capture_output=True, text=True, timeout=60)
    if run.returncode or run.stderr:
        raise AssertionError(f"{words}: {run.returncode} {run.stderr}")
    return set(filter(None, run.stdout.splitlines()))


class CommandLineFiles(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.commands = all_commands(QPIPE)
        cls.options = [option for option in options(help_of(QPIPE)) if not option.entry and option.type != "tables"]

    def test_help_is_read(self):
        """What is known to be there; else an empty list would be complete."""
        self.assertLessEqual({"quantize", "plan", "eval", "verify"}, {command.name for command in self.commands})
        self.assertLessEqual({"model.path", "quantize.bits", "evaluate.after"}, {option.key for option in self.options})
        for command in self.commands:
            self.assertIn(["-h", "--help"], [argument.names for argument in command.arguments])

    def test_up_to_date(self):
        run = subprocess.run([sys.executable, os.path.join(ROOT, "scripts/command_line_files.py"), QPIPE, "--check"], capture_output=True, text=True)
        self.assertEqual(run.returncode, 0, run.stdout + run.stderr)

    def test_all_are_named(self):
        zsh, man = text_of(ZSH), text_of(MAN).replace("\\-", "-")
        for command in self.commands:
            self.assertIn(f"{command.name})", zsh)
            self.assertIn(f".SS qpipe {command.name}", man)
            for argument in command.arguments:
                for name in argument.names:
                    with self.subTest(command=command.name, option=name):
                        self.assertRegex(zsh, rf"['{{,]\*?{name}[\[,}}]")
                        self.assertIn(f"\\fB{name}\\fR", man)
        for option in self.options:
            with self.subTest(option=option.key):
                self.assertIn(f"'{option.key}:", zsh)
                self.assertIn(f".BR {option.key} ", man)

    def test_bash_commands(self):
        self.assertEqual(completed(""), {command.name for command in self.commands} | {"--help", "--version", "run.toml"})
        self.assertEqual(completed("pl"), {"plan"})
        self.assertEqual(completed("run.toml", "--"), {"--set", "--resume", "--dry-run"})

    def test_bash_options(self):
        for command in self.commands:
            names = {name for argument in command.arguments for name in argument.names}
            self.assertEqual(completed(command.name, "-"), names)
        self.assertEqual(completed("plan", "run.toml", "--gpu"), {"--gpu-memory"})
        self.assertEqual(completed("eval", "--backend", ""), {"auto", "cpu", "cuda"})
        self.assertEqual(completed("quantize", "M", "--target", "v"), {"vllm"})
        self.assertEqual(completed("plan", "run.toml", "--ranks", ""), set())
        self.assertIn("forward=", completed("plan", "run.toml", "--rate", ""))
        self.assertEqual(completed("compare", "run.toml", "--methods", "gptq,bnb-n"), {"gptq,bnb-nf4"})

    def test_bash_settings(self):
        """Words as readline makes them, with = by itself, and in one piece."""
        for before in (["run.toml"], ["plan", "run.toml"], ["quantize", "M", "-o", "F"]):
            self.assertEqual(completed(*before, "--set", ""), {option.key + "=" for option in self.options})
            self.assertEqual(completed(*before, "--set", "memory.gpu", "=", "1", "quantize.bi"), {"quantize.bits="})
            for option in self.options:
                if values_allowed(option):
                    self.assertEqual(completed(*before, "--set", option.key, "="), set(values_allowed(option)))
        self.assertEqual(completed("run.toml", "--set", "quantize.method", "=", "bnb-"), {"bnb-nf4", "bnb-fp4", "bnb-int8"})
        self.assertEqual(completed("run.toml", "--set", "awq.clip=t"), {"awq.clip=true"})

    @unittest.skipUnless(shutil.which("zsh"), "no zsh: its completion's syntax is not looked at")
    def test_zsh(self):
        run = subprocess.run(["zsh", "-n", os.path.join(ROOT, ZSH)], capture_output=True, text=True)
        self.assertEqual((run.returncode, run.stderr), (0, ""))

    @unittest.skipUnless(shutil.which("mandoc") or shutil.which("groff"), "no mandoc, no groff: the man page is not formatted")
    def test_man(self):
        command = ["mandoc", "-T", "lint", "-W", "error"] if shutil.which("mandoc") else ["groff", "-man", "-Tutf8", "-ww"]
        run = subprocess.run([*command, os.path.join(ROOT, MAN)], capture_output=True, text=True)
        self.assertEqual((run.returncode, run.stderr), (0, ""))


if __name__ == "__main__":
    QPIPE = sys.argv[1]
    unittest.main(argv=sys.argv[:1], verbosity=2)
