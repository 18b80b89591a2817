"""A Slurm cluster of this machine alone: munged, slurmctld and slurmd of the distribution in a private folder, as root, on free ports."""
import os
import shutil
import socket
import subprocess
import time

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scancel", "scontrol", "squeue")


def missing():
    """Why no cluster can be started here, or ''."""
    absent = [name for name in PROGRAMS if program(name) is None]
    if absent:
        return f"no {', '.join(absent)}: scripts/install-dependencies --slurm installs them"
    return "" if os.geteuid() == 0 else "slurmd starts jobs as root only: run this test as root"


def program(name):
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


class Cluster:
    """Nodes n1..nN, each with 16 CPUs and 8 GPUs that are only names."""

    def __init__(self, folder, nodes=1):
        self.folder = folder
        self.names = [f"n{i + 1}" for i in range(nodes)]
        self.daemons = []
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH_", "OMPI_", "PMIX_", "PMI_"))}
        self.env.update(SLURM_CONF=self.path("slurm.conf"), OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")

    def path(self, name):
        return os.path.join(self.folder, name)

    def start(self):
        try:
            self.write_configuration()
            # --force: munged warns about folders that others could write to, such as /tmp.
            self.run("munged", "--foreground", "--force", "--key-file", self.path("munge.key"), "--socket", self.path("munge.socket"),
                     "--pid-file", self.path("munged.pid"), "--log-file", self.path("munged.log"), "--seed-file", self.path("munged.seed"))
            self.wait_for(lambda: os.path.exists(self.path("munge.socket")), "munged's socket")
            self.run("slurmctld", "-D", "-c")
            for name in self.names:
                os.mkdir(self.path(name))
                self.run("slurmd", "-D", "-N", name)
            self.wait_for(lambda: self.output("sinfo", "-h", "-N", "-o", "%T", check=False).split() == ["idle"] * len(self.names), "idle nodes")
        except BaseException:
            self.stop()
            raise

    def write_configuration(self):
        ctl, *ports = free_ports(1 + len(self.names))
        host = socket.gethostname().split(".")[0]
        with open(self.path("munge.key"), "wb") as f:
            f.write(os.urandom(128))
        os.chmod(self.path("munge.key"), 0o400)
        os.chmod(self.folder, 0o755)
        # Nothing here needs control groups, which containers lack. Before 23.02 slurmd loads a plugin all the same: v1's does nothing until asked.
        version = tuple(int(part) for part in self.output(program("slurmctld"), "-V").split()[-1].split(".")[:2])
        with open(self.path("cgroup.conf"), "w") as f:
            f.write(f"CgroupPlugin={'disabled' if version >= (23, 2) else 'cgroup/v1'}\n")
        for gpu in range(8):  # slurmd counts the files
            open(self.path(f"gpu{gpu}"), "w").close()
        with open(self.path("gres.conf"), "w") as f:
            f.write(f"Name=gpu File={self.path('gpu[0-7]')}\n")
        with open(self.path("slurm.conf"), "w") as f:
            f.write(f"""\
ClusterName=qpipe
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctl}
SlurmUser=root
AuthType=auth/munge
# A requeued job waits until the credential of its last start has expired; the default is 120 seconds.
AuthInfo=socket={self.path("munge.socket")},cred_expire=5
CredType=cred/munge
StateSaveLocation={self.path("state")}
SlurmdSpoolDir={self.path("%n")}
TmpFS={self.path("%n")}
SlurmctldPidFile={self.path("slurmctld.pid")}
SlurmdPidFile={self.path("%n.pid")}
SlurmctldLogFile={self.path("slurmctld.log")}
SlurmdLogFile={self.path("%n.log")}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,batch_sched_delay=0
SlurmdParameters=config_overrides
MailProg=/bin/true
ReturnToService=2
KillWait=5
MinJobAge=3600
GresTypes=gpu
""")
            for name, port in zip(self.names, ports):
                f.write(f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=16 Gres=gpu:8 State=UNKNOWN\n")
            f.write(f"PartitionName=all Nodes={','.join(self.names)} Default=YES MaxTime=INFINITE State=UP\n")

    def run(self, name, *arguments):
        with open(self.path(f"{name}.{len(self.daemons)}.out"), "w") as log:
            self.daemons.append(subprocess.Popen([program(name), *arguments], env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log))

    def stop(self):
        subprocess.run(["scancel", "--user=root"], env=self.env, capture_output=True, timeout=30)
        for daemon in reversed(self.daemons):  # slurmd, slurmctld, munged
            daemon.terminate()
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def wait_for(self, condition, what, seconds=60):
        end = time.monotonic() + seconds
        while not condition():
            for daemon in self.daemons:
                if daemon.poll() is not None:
                    raise RuntimeError(f"{daemon.args[0]} ended with code {daemon.returncode}\n{self.logs()}")
            if time.monotonic() > end:
                raise RuntimeError(f"no {what} after {seconds} s\n{self.logs()}")
            time.sleep(0.2)

    def logs(self):
        """The end of each daemon's log."""
        text = []
        for name in sorted(os.listdir(self.folder)):
            if name.endswith((".log", ".out")):
                with open(self.path(name), errors="replace") as f:
                    text.append(f"--- {name}\n" + "".join(f.readlines()[-15:]))
        return "\n".join(text)

    def output(self, *command, check=True):
        result = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=60)
        if check and result.returncode:
            raise RuntimeError(f"{' '.join(command)}: {result.stderr}")
        return result.stdout
