#!/usr/bin/env python3
"""Several hosts on one machine: hosts_test.py QPIPE MPIEXEC.

Two "hosts" are processes with a network, a host name and a folder of their own (namespaces of Linux) beside a folder that both see; a virtual
cable joins them. mpirun starts its daemon on the other one by a launch agent that this test writes in place of ssh. The run gives the bytes of
one host; when the cable is cut in the middle all ranks end within parallel.timeout + 10 s on both, and the run goes on at the other host alone.
mpirun itself waits for its daemon behind the cut, by default for minutes; with oob_tcp_keepalive_* it ends, too.

Needs root (or user namespaces) and iproute2; where it cannot run it ends with 77 and says why."""
import glob
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

from processes import digest, environment
from tiny_model import make_model, make_tokens

QPIPE, MPIEXEC = "", ""
SKIPPED = 77
TIMEOUT = 15  # parallel.timeout, s: above the 5 s for each of two locks that a host that is gone still seems to hold
LAYERS = 24
NAMES = ("left", "right")


def reason_not_to_run():
    for tool in ("unshare", "nsenter", "ip"):
        if shutil.which(tool) is None and not os.path.exists(f"/sbin/{tool}"):
            return f"{tool} is not installed (util-linux, iproute2)"
    made = subprocess.run(["unshare", "--net", "--uts", "--mount", "true"], capture_output=True, text=True)
    return made.stderr.strip() if made.returncode else ""


class Host:
    """Namespaces that live as long as the process in them."""

    def __init__(self, name, folder):
        self.name = name
        own, here = os.path.join(folder, name + "-own"), os.path.join(folder, "own")
        os.makedirs(own)
        hosts = os.path.join(folder, "hosts")
        setup = (f"mount --make-rprivate / && mount --bind {own} {here} && mount --bind {hosts} /etc/hosts && hostname {name} && ip link set lo up && "
                 "echo ready && exec sleep infinity")
        self.process = subprocess.Popen(["unshare", "--net", "--uts", "--mount", "sh", "-c", setup], stdout=subprocess.PIPE, text=True)
        if self.process.stdout.readline() != "ready\n":
            raise RuntimeError(f"cannot make the host {name}")
        self.net = os.readlink(f"/proc/{self.process.pid}/ns/net")

    def inside(self, *words):
        return ["nsenter", "--target", str(self.process.pid), "--net", "--uts", "--mount", "--wd=/", "--", *words]

    def run(self, *words):
        subprocess.run(self.inside(*words), check=True, capture_output=True, text=True)

    def processes(self):
        """Those of qpipe on this host."""
        found = []
        for path in glob.glob("/proc/[0-9]*"):
            try:
                if os.readlink(path + "/ns/net") == self.net and os.readlink(path + "/exe") == os.path.realpath(QPIPE):
                    found.append(int(os.path.basename(path)))
            except OSError:
                pass
        return found

    def end(self):
        for path in glob.glob("/proc/[0-9]*"):  # a daemon of mpirun may stay behind a cut cable
            try:
                if os.readlink(path + "/ns/net") == self.net:
                    os.kill(int(os.path.basename(path)), signal.SIGKILL)
            except OSError:
                pass
        self.process.stdout.close()
        self.process.wait()


class Hosts(unittest.TestCase):
    def setUp(self):
        self.temporary = tempfile.TemporaryDirectory()
        self.addCleanup(self.temporary.cleanup)
        folder = self.folder = self.temporary.name
        self.output = os.path.join(folder, "out")
        self.config = os.path.join(folder, "run.toml")
        os.mkdir(os.path.join(folder, "own"))
        with open(os.path.join(folder, "hosts"), "w") as f:
            f.write("127.0.0.1 localhost\n10.99.0.1 left\n10.99.0.2 right\n")
        make_model(os.path.join(folder, "model"), layers=LAYERS)
        make_tokens(os.path.join(folder, "tokens.safetensors"))
        with open(self.config, "w") as f:
            f.write(f'[model]\npath = "{folder}/model"\n[calibration]\ndata = "{folder}/tokens.safetensors"\nsamples = 24\nseqlen = 48\n'
                    f'cache = "{folder}/own/cache"\n[quantize]\ngroup_size = 32\n[memory]\nmicro_batch = 200\n[output]\npath = "{self.output}"\n'
                    f'[parallel]\nbackend = "cpu"\ntimeout = {TIMEOUT}\n[run]\nprogress = "plain"\n')
        self.hosts = []
        for name in NAMES:
            self.hosts.append(Host(name, folder))
            self.addCleanup(self.hosts[-1].end)
        left, right = self.hosts
        subprocess.run(["ip", "link", "add", f"qp{os.getpid()}", "type", "veth", "peer", "name", f"qq{os.getpid()}"], check=True)
        for host, link, address in ((left, f"qp{os.getpid()}", "10.99.0.1/24"), (right, f"qq{os.getpid()}", "10.99.0.2/24")):
            subprocess.run(["ip", "link", "set", link, "netns", str(host.process.pid), "name", "cable"], check=True)
            host.run("ip", "address", "add", address, "dev", "cable")
            host.run("ip", "link", "set", "cable", "up")
        self.agent = os.path.join(folder, "agent")
        with open(self.agent, "w") as f:  # agent HOST COMMAND..., as ssh
            f.write("#!/bin/sh\nhost=$1\nshift\ncase $host in\n" +
                    "".join(f'{h.name}) exec {" ".join(h.inside())} sh -c "$*" ;;\n' for h in self.hosts) + 'esac\necho "no host $host" >&2\nexit 1\n')
        os.chmod(self.agent, 0o755)

    def start(self, ranks_by_host, keepalive=()):
        first = next(iter(ranks_by_host))
        words = [MPIEXEC, "--bind-to", "none", "--mca", "plm_rsh_agent", self.agent, "--mca", "btl", "self,vader,tcp", *keepalive, "--host",
                 ",".join(f"{host.name}:{ranks}" for host, ranks in ranks_by_host.items()), "-np", str(sum(ranks_by_host.values())),
                 QPIPE, self.config]
        with open(os.path.join(self.folder, "said"), "w") as said:
            return subprocess.Popen(first.inside(*words), env=environment(TMPDIR=os.path.join(self.folder, "own")), stdout=said, stderr=subprocess.STDOUT)

    def said(self):
        with open(os.path.join(self.folder, "said")) as f:
            return f.read()

    def finish(self, process, limit):
        """What was said. In a file: a daemon behind a cut cable would keep a pipe open."""
        try:
            process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            process.kill()
            ranks = ", ".join(f"{len(host.processes())} ranks on {host.name}" for host in self.hosts)
            self.fail(f"still runs after {limit} s, {ranks}:\n{self.said()}")
        return self.said()

    def expected(self):
        process = self.start({self.hosts[0]: 1})
        text = self.finish(process, 120)
        self.assertEqual(process.returncode, 0, text)
        bytes_of_one = digest(self.output)
        shutil.rmtree(self.output)
        os.unlink(self.output + ".report.json")
        return bytes_of_one

    def test_same_bytes(self):
        left, right = self.hosts
        expected = self.expected()
        process = self.start({left: 2, right: 2})
        text = self.finish(process, 120)
        self.assertEqual(process.returncode, 0, text)
        self.assertEqual(digest(self.output), expected)

    def start_and_cut(self, keepalive=()):
        """A run that has lost its cable after two layers, and when that was."""
        left, right = self.hosts
        process = self.start({left: 2, right: 2}, keepalive)
        while not glob.glob(self.output + ".run/layer-00001*.json") and process.poll() is None:
            time.sleep(0.005)
        left.run("ip", "link", "set", "cable", "down")
        self.assertIsNone(process.poll(), "the run ended before the cut: " + self.said())
        self.assertTrue(left.processes() and right.processes(), "no ranks on both hosts: " + self.said())
        return process, time.monotonic()

    def expect_end_of_ranks(self, cut):
        while any(host.processes() for host in self.hosts) and time.monotonic() - cut < TIMEOUT + 10:
            time.sleep(0.1)
        self.assertEqual([len(host.processes()) for host in self.hosts], [0, 0], f"ranks still run {TIMEOUT + 10} s after the cut: {self.said()}")
        print(f"the ranks ended {time.monotonic() - cut:.1f} s after the cut", file=sys.stderr)

    def expect_rest_on_other_host(self, expected):
        process = self.start({self.hosts[1]: 2})
        text = self.finish(process, 120)
        self.assertEqual(process.returncode, 0, text)
        self.assertRegex(text, r"layer 0  finished by an earlier run")
        self.assertEqual(digest(self.output), expected)

    def test_cut_cable(self):
        expected = self.expected()
        process, cut = self.start_and_cut()
        self.expect_end_of_ranks(cut)
        errors = [line for line in self.said().splitlines() if line.startswith("qpipe: error: ")]
        self.assertTrue(errors, self.said())
        self.assertIn(f"after {TIMEOUT} s", errors[0])
        process.kill()
        process.wait()
        self.expect_rest_on_other_host(expected)

    def test_cut_cable_with_keepalive(self):
        expected = self.expected()
        process, cut = self.start_and_cut([word for name, value in (("time", 1), ("intvl", 1), ("probes", 2))
                                           for word in ("--mca", f"oob_tcp_keepalive_{name}", str(value))])
        text = self.finish(process, TIMEOUT + 10)
        self.assertNotEqual(process.returncode, 0, text)
        print(f"mpirun ended {time.monotonic() - cut:.1f} s after the cut", file=sys.stderr)
        self.expect_end_of_ranks(cut)
        self.expect_rest_on_other_host(expected)


if __name__ == "__main__":
    QPIPE, MPIEXEC = (shutil.which(os.path.abspath(word) if os.path.exists(word) else word) for word in sys.argv[1:3])
    if reason := reason_not_to_run():
        print("cannot make hosts on this machine: " + reason)
        sys.exit(SKIPPED)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ctest's timeout: the hosts end, too
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]])
