"""What tests of whole runs share: the environment that they start in, the processes below one, and the bytes that they leave."""
import glob
import hashlib
import os

LAUNCHER_VARIABLES = ("OMPI_", "PMIX_", "PMI_", "SLURM_")  # of a job around the tests


def environment(launcher_variables=LAUNCHER_VARIABLES, **more):
    env = {k: v for k, v in os.environ.items() if not k.startswith(launcher_variables)}
    env["OMP_NUM_THREADS"] = "1"
    if os.geteuid() == 0:
        env.update(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
    env.update(more)
    return env


def digest(folder, counts=lambda name: True):
    """name -> hash, of the folder's files whose names count."""
    hashes = {}
    for name in filter(counts, sorted(os.listdir(folder))):
        with open(os.path.join(folder, name), "rb") as f:
            hashes[name] = hashlib.sha256(f.read()).hexdigest()
    return hashes


def processes_below(pid, program):
    """Those of `program` among pid, its children and theirs."""
    found, todo = [], [pid]
    while todo:
        parent = todo.pop()
        for task in glob.glob(f"/proc/{parent}/task/*/children"):
            try:
                with open(task) as f:
                    todo += [int(child) for child in f.read().split()]
            except OSError:
                pass
        try:
            if os.readlink(f"/proc/{parent}/exe") == os.path.realpath(program):
                found.append(parent)
        except OSError:
            pass
    return found
