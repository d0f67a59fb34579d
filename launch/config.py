"""Where processes run, as a recipe says it. Reached as ``recipe.launch``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

LauncherName = Literal["local", "torchrun", "deepspeed", "slurm"]


@dataclass(frozen=True, kw_only=True)
class LaunchConfig:
    """How the ranks of a stage are started. Shapes no result: a run may change it half-way."""

    launcher: LauncherName = "local"
    """What starts a stage; ``local`` is one process on this machine."""
    nodes: int = 1
    """Machines. Several need slurm, deepspeed with a hostfile, or torchrun started on each."""
    procs_per_node: int = 1
    """Ranks on each node: one a GPU, or one a core or two on CPU."""
    master_address: str | None = None
    """Where ranks of several nodes meet: the first node. Slurm finds it by itself."""
    master_port: int = 29500
    """The port there; a single node under torchrun takes a free one instead."""
    node_rank: int = 0
    """Which node this is, 0 the first, where torchrun is started by hand on each."""
    hostfile: str | None = None
    """DeepSpeed's list of ``HOST slots=N`` lines, for several nodes."""
    partition: str | None = None
    """Slurm's partition; null takes the cluster's default."""
    account: str | None = None
    """Slurm's account; null takes the user's default."""
    time_limit_minutes: int = 24 * 60
    """A Slurm job's limit; two minutes before it, the job checkpoints and is queued again."""
    cpus_per_proc: int = 1
    """Cores that Slurm reserves for each rank."""
    gpus_per_node: int = 0
    """GPUs that Slurm reserves on each node; 0 on a CPU cluster."""

    def __post_init__(self) -> None:
        for name in ("nodes", "procs_per_node", "cpus_per_proc"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 1 or more.")
        if self.time_limit_minutes < 5:
            raise ValueError(
                f"time_limit_minutes is {self.time_limit_minutes}; expected 5 or more."
            )
        if self.gpus_per_node < 0:
            raise ValueError(f"gpus_per_node is {self.gpus_per_node}; expected 0 or more.")
        if not 1 <= self.master_port <= 65535:
            raise ValueError(f"master_port is {self.master_port}; expected 1 to 65535.")
        if not 0 <= self.node_rank < self.nodes:
            raise ValueError(
                f"node_rank is {self.node_rank}; expected 0 to {self.nodes - 1}, one of the nodes."
            )
        if self.launcher == "local" and self.num_ranks > 1:
            raise ValueError(
                f"launcher is local with {self.num_ranks} ranks; local is one process here: take "
                "torchrun, or set nodes and procs_per_node to 1."
            )
        if self.launcher == "torchrun" and self.nodes > 1 and self.master_address is None:
            raise ValueError(
                f"master_address is null with {self.nodes} nodes under torchrun; expected the "
                "address of the first node, as in launch.master_address=node0."
            )
        if self.launcher == "deepspeed" and self.nodes > 1 and self.hostfile is None:
            raise ValueError(
                f"hostfile is null with {self.nodes} nodes under deepspeed; expected a file of "
                "`HOST slots=N` lines, as in launch.hostfile=hosts."
            )

    @property
    def num_ranks(self) -> int:
        """Ranks on all nodes together."""
        return self.nodes * self.procs_per_node
