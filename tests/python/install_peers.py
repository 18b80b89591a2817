#!/usr/bin/env python3
"""Makes the Python environment of the peers: install_peers.py FOLDER. Does nothing when FOLDER holds what peers.txt names; installs
what is missing when it was made by the same Python."""
import os
import shutil
import subprocess
import sys
import venv


def main():
    folder = os.path.abspath(sys.argv[1])
    requirements = os.path.join(os.path.dirname(os.path.abspath(__file__)), "peers.txt")
    wanted = f"{sys.version}\n" + open(requirements).read()
    marker = os.path.join(folder, "installed.txt")
    if os.path.exists(marker) and open(marker).read() == wanted:
        print(f"{folder}: up to date")
        return 0
    if not os.path.exists(marker) or not open(marker).read().startswith(f"{sys.version}\n"):
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=True)
    pip = [os.path.join(folder, "bin", "python"), "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--no-cache-dir", "--progress-bar", "off", "-r", requirements], check=True)
    subprocess.run([*pip, "check"], check=True)
    open(marker, "w").write(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
