"""A real slurm of two nodes on this machine, for tests; needs root on Debian or Ubuntu, and no systemd.

    munged, slurmctld                       on this machine as it is
    slurmd -N node1, slurmd -N node2        each in namespaces of its own: processes, host name, /etc/hosts

A node is its process namespace, so one SIGKILL crashes it with all that ran on it, and stopping leaves nothing behind.
Every daemon is a child that dies with the test process. By hand, until Enter is pressed:

    python -m tests.slurm.cluster
"""

import contextlib
import os
import random
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from internvl.parallel.launch import find_free_port

NODES = ("node1", "node2")
PARTITION = "part"
NUM_FAKE_GPUS = 8
PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
COMMANDS = ("slurmctld", "slurmd", "srun", "sbatch", "scontrol", "munged", "unshare", "setpriv")

_CONFIG = """\
ClusterName=tests
FirstJobId={first_job}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
KillWait=5
MinJobAge=3600
SlurmctldTimeout=30
SlurmdTimeout=10
MessageTimeout=20
GresTypes=gpu
PartitionName={partition} Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""
_NODE = (
    "NodeName={name} NodeHostname={host} NodeAddr=127.0.1.{number} Port={port} "
    "CPUs=64 RealMemory=1000000 Gres=gpu:{num_gpus}\n"
)


def explain_absence() -> str:
    """Why no cluster can run here, after trying to install it; an empty string when one can."""
    if os.getuid() != 0:
        return "a test slurm needs root"
    if [name for name in COMMANDS if shutil.which(name) is None]:
        if shutil.which("apt-get") is None:
            return "slurm is not installed, and there is no apt-get to install it with"
        _install()
    if missing := [name for name in COMMANDS if shutil.which(name) is None]:
        return f"not installed, and apt-get could not: {', '.join(missing)}"
    probe = subprocess.run([*_NAMESPACES, "true"], capture_output=True, text=True)
    if probe.returncode:
        return f"this container allows no namespaces ({probe.stderr.strip()})"
    return ""


_NAMESPACES = ("unshare", "--mount", "--propagation=slave", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc")


def _install() -> None:
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    patience = ["-o", "Acquire::Retries=0", "-o", "Acquire::http::Timeout=10"]
    for command in (["update"], ["install", "-y", "--no-install-recommends", *PACKAGES]):
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(
                ["apt-get", "-qq", *patience, *command],
                env=environ,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=120,
            )


class Cluster:
    """Daemons and how to talk to them; `with Cluster() as cluster:` starts and always stops them."""

    def __init__(self) -> None:
        # Short: a Unix socket lies in it, and its path may have 107 characters.
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        self.environ = {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def __enter__(self) -> "Cluster":
        try:
            self._configure()
            self._start("munged", ["munged", "-F", *self._munge_options()])
            self._wait_for(lambda: (self.folder / "munge.socket").exists(), "munged")
            self._start("slurmctld", ["slurmctld", "-D", "-i"])
            for node in NODES:
                self.restore(node)
            self._wait_for(lambda: self.query("sinfo", "-h", "-N", "-o", "%t") == ["idle"] * len(NODES), "idle nodes")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Nodes first, at once, then the controller, munged last."""
        for name in sorted(self.daemons, key=lambda name: name not in NODES):
            self._stop(name, signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)

    def crash(self, node: str) -> None:
        """End a node and everything that runs on it, as a power cut would."""
        self._stop(node, signal.SIGKILL)

    def restore(self, node: str) -> None:
        """Start a node."""
        inside = f"mount --bind {self.folder}/hosts /etc/hosts && hostname {node} && exec slurmd -D -N {node}"
        # The shell stays as the first process of the namespace: it collects what the jobs leave behind.
        self._start(node, [*_NAMESPACES, "sh", "-c", f"({inside}) & wait"])

    def query(self, *command: str) -> list[str]:
        """Lines that a slurm command prints; none when it fails."""
        result = subprocess.run(command, env={**os.environ, **self.environ}, capture_output=True, text=True, timeout=60)
        return result.stdout.splitlines() if result.returncode == 0 else []

    def field(self, job: str, name: str) -> str:
        """A field of `scontrol show job`, such as JobState or Restarts."""
        words = shlex.split(" ".join(self.query("scontrol", "-o", "show", "job", job)))
        return dict(word.partition("=")[::2] for word in words).get(name, "")

    def logs(self) -> str:
        """The ends of the daemons' logs, for messages."""
        files = sorted((self.folder / "log").iterdir())
        return "\n".join(f"== {path.name}\n{path.read_text(errors='replace')[-1500:]}" for path in files)

    def _configure(self) -> None:
        self.folder.chmod(0o755)
        for name in ("log", "state", "dev", *(f"spool.{node}" for node in NODES)):
            (self.folder / name).mkdir()
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(1024))
        host = socket.gethostname().partition(".")[0]
        config = _CONFIG.format(
            host=host,
            folder=self.folder,
            controller_port=find_free_port(),
            partition=PARTITION,
            first_job=random.randrange(1000, 60000),  # ports of runs follow from it
        )
        for number, node in enumerate(NODES, start=1):
            port = find_free_port()
            config += _NODE.format(name=node, host=host, number=number, port=port, num_gpus=NUM_FAKE_GPUS)
        (self.folder / "slurm.conf").write_text(config)
        # A GPU is a character device with a number at the end of its name.
        for index in range(NUM_FAKE_GPUS):
            (self.folder / "dev" / f"nvidia{index}").symlink_to("/dev/null")
        devices = f"{self.folder}/dev/nvidia[0-{NUM_FAKE_GPUS - 1}]"
        (self.folder / "gres.conf").write_text(f"NodeName={','.join(NODES)} Name=gpu File={devices}\n")
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")  # loaded always, used by nothing here
        names = "".join(f"127.0.1.{number} {node}\n" for number, node in enumerate(NODES, start=1))
        (self.folder / "hosts").write_text(Path("/etc/hosts").read_text() + "\n" + names)

    def _munge_options(self) -> list[str]:
        files = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munge.pid", "seed-file": "munge.seed"}
        return [f"--{name}={self.folder / file}" for name, file in files.items()] + [
            f"--log-file={self.folder}/log/munged.log"
        ]

    def _start(self, name: str, command: list[str]) -> None:
        with open(self.folder / "log" / f"{name}.out", "ab") as output:
            self.daemons[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig=KILL", *command],
                env={**os.environ, **self.environ},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def _stop(self, name: str, number: signal.Signals) -> None:
        daemon = self.daemons.pop(name)
        daemon.send_signal(number)
        daemon.wait(timeout=30)

    def _wait_for(self, condition, what: str, *, timeout_s: float = 60) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                raise RuntimeError(f"the test slurm has no {what} after {timeout_s:.0f} s\n{self.logs()}")
            time.sleep(0.1)


if __name__ == "__main__":
    if reason := explain_absence():
        raise SystemExit(reason)
    with Cluster() as running:
        print(f"export SLURM_CONF={running.environ['SLURM_CONF']}", flush=True)
        input()
