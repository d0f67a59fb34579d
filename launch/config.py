"""Options of launching: the recipe's ``launch``."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from boxless.errors import BoxlessError
from launch.slurm_config import SlurmConfig

LauncherName = Literal["local", "torchrun", "deepspeed", "slurm"]
DEFAULT_PORT = 29500


@dataclass(frozen=True, kw_only=True)
class LaunchConfig:
    """How the ranks of a stage are started. Shapes no result: a run may change it half-way."""

    launcher: LauncherName = "local"
    """What starts a stage; ``local`` is one process on this machine."""
    nodes: int = 1
    """Machines. Several need slurm, deepspeed with a hostfile, or torchrun started on each."""
    min_nodes: int | None = None
    """Pretraining continues with as few nodes when others are lost; null waits for all of them."""
    procs_per_node: int = 1
    """Ranks on each node: one a GPU, or one a core or two on CPU. Pretrain has them on all nodes,
    distill and evaluate on one; other stages are one process unless ``--procs-per-node`` is
    given."""
    master_address: str | None = None
    """Where ranks of several nodes meet: the first node. Slurm finds it by itself."""
    master_port: int | None = None
    """The port there. Null: a free one on one node, one derived from the job's number under Slurm,
    29500 where several nodes are started by hand."""
    node_rank: int = 0
    """Which node this is, 0 the first, where torchrun is started by hand on each."""
    hostfile: str | None = None
    """DeepSpeed's list of ``HOST slots=N`` lines, for several nodes."""
    env: dict[str, str] = field(default_factory=dict)
    """Environment variables of every rank, under every launcher, as in ``{NCCL_DEBUG: INFO}``."""
    cpus_per_proc: int = 1
    """Cores that Slurm reserves for each rank."""
    gpus_per_node: int = 0
    """GPUs that Slurm reserves on each node; 0 on a CPU cluster."""
    time_limit_minutes: int = 24 * 60
    """A Slurm job's limit; before it, the job checkpoints and is queued again."""
    checkpoint_seconds_before_limit: int = 120
    """How long before the limit that is."""
    max_requeues: int = 100
    """How often a job is queued again, after its limit or the loss of a node."""
    max_restarts: int | None = None
    """Restarts of pretraining's ranks in a row without a new step, before the job ends. Null: 3
    on several nodes and under Slurm, else 0."""
    hang_seconds: int = 600
    """Without a step for so long, ranks are ended and started again (where restarts are left)."""
    slurm: SlurmConfig = field(default_factory=SlurmConfig)
    """What the cluster asks for."""
    partition: str | None = None
    """The earlier name of slurm.partition."""
    account: str | None = None
    """The earlier name of slurm.account."""

    def __post_init__(self) -> None:
        self._check_numbers()
        self._check_launcher()
        for name, value in self.env.items():
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                raise BoxlessError(
                    f"env has {name!r}; expected the name of a variable: [A-Za-z0-9_]."
                )
            if "\0" in value:
                raise BoxlessError(f"env.{name} has a NUL character; expected text without.")
        for name in ("master_address", "hostfile"):
            value = getattr(self, name)
            if value is not None and (not value.isprintable() or value.startswith("-")):
                raise BoxlessError(f"{name} is {value!r}; expected printable text without a dash.")
        for name in ("partition", "account"):
            old, new = getattr(self, name), getattr(self.slurm, name)
            if old is not None and new is not None and old != new:
                raise BoxlessError(
                    f"{name} is {old!r} and slurm.{name} is {new!r}; expected only slurm.{name}."
                )
            if old is not None:
                SlurmConfig(**{name: old})

    def _check_numbers(self) -> None:
        least = {
            "nodes": 1,
            "procs_per_node": 1,
            "cpus_per_proc": 1,
            "time_limit_minutes": 1,
            "checkpoint_seconds_before_limit": 1,
            "gpus_per_node": 0,
            "max_requeues": 0,
            "hang_seconds": 10,
        }
        for name, value in least.items():
            if getattr(self, name) < value:
                raise BoxlessError(f"{name} is {getattr(self, name)}; expected {value} or more.")
        if self.max_restarts is not None and self.max_restarts < 0:
            raise BoxlessError(f"max_restarts is {self.max_restarts}; expected 0 or more, or null.")
        if self.master_port is not None and not 1 <= self.master_port <= 65534:
            raise BoxlessError(f"master_port is {self.master_port}; expected 1 to 65534.")
        if self.time_limit_minutes * 60 <= self.checkpoint_seconds_before_limit:
            raise BoxlessError(
                f"time_limit_minutes is {self.time_limit_minutes}; expected more than "
                f"checkpoint_seconds_before_limit, {self.checkpoint_seconds_before_limit} seconds."
            )
        if self.min_nodes is not None and not 1 <= self.min_nodes <= self.nodes:
            raise BoxlessError(
                f"min_nodes is {self.min_nodes}; expected 1 to nodes, {self.nodes}, or null."
            )
        if not 0 <= self.node_rank < self.nodes:
            raise BoxlessError(
                f"node_rank is {self.node_rank}; expected 0 to {self.nodes - 1}, one of the nodes."
            )

    def _check_launcher(self) -> None:
        if self.launcher == "local" and self.num_ranks > 1:
            raise BoxlessError(
                f"launcher is local with {self.num_ranks} ranks; local is one process here: take "
                "torchrun, or set nodes and procs_per_node to 1."
            )
        if self.launcher == "torchrun" and self.nodes > 1 and self.master_address is None:
            raise BoxlessError(
                f"master_address is null with {self.nodes} nodes under torchrun; expected the "
                "address of the first node, as in launch.master_address=node0."
            )
        if self.launcher == "deepspeed" and self.nodes > 1 and self.hostfile is None:
            raise BoxlessError(
                f"hostfile is null with {self.nodes} nodes under deepspeed; expected a file of "
                "`HOST slots=N` lines, as in launch.hostfile=hosts."
            )

    @property
    def num_ranks(self) -> int:
        """Ranks on all nodes together."""
        return self.nodes * self.procs_per_node

    @property
    def restarts(self) -> int:
        """``max_restarts`` with its default filled in."""
        if self.max_restarts is not None:
            return self.max_restarts
        return 3 if self.nodes > 1 or self.launcher == "slurm" else 0

    @property
    def slurm_options(self) -> dict[str, str]:
        """Options of sbatch that the recipe gives, earlier names included."""
        earlier = {"partition": self.partition, "account": self.account}
        return {name: text for name, text in earlier.items() if text} | self.slurm.options
