"""A cluster of three nodes, made of namespaces on this machine by a script outside the repository.

The script has the commands ``up N``, ``down``, ``ctl CMD``, ``node nK CMD``, ``kill``, ``start``,
``cut`` and ``heal nK``; it keeps its state in the folder NSBASE, and is beside the
``slurm.conf.in`` of its Slurm. Needs root and Slurm; ssh between the nodes needs openssh-server.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from datetime import datetime
from pathlib import Path

SCRIPT = Path("../shared/cluster/nscluster.sh")
_SSH_OPTIONS = "StrictHostKeyChecking no\nUserKnownHostsFile /dev/null\nLogLevel ERROR\n"


class Cluster:
    """A cluster of the caller's own; ``slurm_lines`` are added to its Slurm's configuration."""

    def __init__(self, script: Path, slurm_lines: str = "") -> None:
        base = Path(tempfile.mkdtemp(prefix="boxless-cluster-", dir="/tmp"))
        base.chmod(0o755)
        for path in script.parent.iterdir():
            shutil.copy(path, base)
        with (base / "slurm.conf.in").open("a") as config:
            config.write(slurm_lines)
        self._base, self._script = base, base / script.name

    def __call__(self, *words: str) -> str:
        """Run a command of the script; what it printed."""
        env = os.environ | {"NSBASE": str(self._base)}
        command = ["bash", str(self._script), *words]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
        return done.stdout

    def start(self, *words: str, log: Path) -> subprocess.Popen[bytes]:
        """A command of the script that continues."""
        env = os.environ | {"NSBASE": str(self._base)}
        with log.open("ab") as file:
            command = ["bash", str(self._script), *words]
            return subprocess.Popen(command, env=env, stdout=file, stderr=file)

    def signal(self, node: str, pattern: str, number: str) -> None:
        """Send a signal to the processes of a node whose command line has ``pattern``."""
        for pid in self("node", node, "pgrep", "-f", pattern).split():
            self("node", node, "kill", f"-{number}", pid)

    def signal_ranks(self, node: str, number: str) -> None:
        """Send a signal to the ranks of a node (launch.preloading.rank)."""
        self("node", node, "pkill", f"-{number}", "boxless-rank")

    def node_down_time(self, since: float) -> float | None:
        """When Slurm's controller first gave up a node after ``since`` (seconds since 1970)."""
        log = self._base / "log/slurmctld.log"
        for line in log.read_text(errors="replace").splitlines():
            found = re.match(r"\[([\d-]+T[\d:.]+)\].* (not responding, setting DOWN)", line)
            at = datetime.fromisoformat(found[1]).timestamp() if found else 0.0
            if at > since:
                return at
        return None

    def wait_until_idle(self) -> bool:
        """Whether Slurm has all three nodes idle, within 150 s."""
        for _ in range(300):
            if self("ctl", "sinfo", "-h", "-t", "idle", "-p", "test", "-o", "%D").strip() == "3":
                return True
            time.sleep(0.5)
        return False

    def resume(self) -> None:
        """Take back nodes that Slurm drained, as an administrator would who has looked at them."""
        for node in self("ctl", "sinfo", "-h", "-N", "-t", "drain", "-o", "%N").split():
            self("ctl", "scontrol", "update", f"nodename={node}", "state=resume")

    def start_sshd(self, folder: Path, nodes: tuple[str, ...]) -> Path:
        """sshd on nodes, with keys of their own in a /root/.ssh that only the namespaces see; a
        hostfile of one slot a node."""
        keys = folder / "ssh"
        keys.mkdir(mode=0o700)
        for place in ("/root/.ssh", "/run/sshd"):
            Path(place).mkdir(exist_ok=True)
        for name in ("id_ed25519", "host_key"):
            generate = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(keys / name)]
            subprocess.run(generate, check=True)
        shutil.copy(keys / "id_ed25519.pub", keys / "authorized_keys")
        (keys / "config").write_text(_SSH_OPTIONS)
        for path in keys.iterdir():
            path.chmod(0o600)
        for node in nodes:
            self("node", node, "mount", "--bind", str(keys), "/root/.ssh")
            daemon = ["/usr/sbin/sshd", "-h", str(keys / "host_key"), "-o", "StrictModes=no"]
            daemon += ["-o", "AuthorizedKeysFile=/root/.ssh/authorized_keys", "-o", "PidFile=none"]
            self("node", node, *daemon)
        time.sleep(1)
        hosts = folder / "hosts"
        hosts.write_text("".join(f"{node} slots=1\n" for node in nodes))
        return hosts

    def down(self) -> None:
        """End it and remove its folder."""
        self("down")
        shutil.rmtree(self._base, ignore_errors=True)
