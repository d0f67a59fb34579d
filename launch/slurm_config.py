"""Options of Slurm jobs: the recipe's ``launch.slurm``."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from typing import Literal

from boxless.errors import BoxlessError

# Set by this package itself, and by which key of the recipe.
_OWN_OPTIONS = {
    "array": "--nodes and --procs-per-node",
    "chdir": "nothing (jobs start where boxless is started)",
    "cpus-per-task": "launch.cpus_per_proc",
    "error": "nothing (logs are in the run folder)",
    "export": "launch.env",
    "gpus-per-node": "launch.gpus_per_node",
    "job-name": "name",
    "kill-on-invalid-dep": "nothing",
    "no-kill": "launch.min_nodes",
    "no-requeue": "launch.max_requeues",
    "nodes": "launch.nodes",
    "ntasks": "launch.procs_per_node",
    "ntasks-per-node": "launch.procs_per_node",
    "open-mode": "nothing (logs are appended to)",
    "output": "nothing (logs are in the run folder)",
    "parsable": "nothing",
    "requeue": "launch.max_requeues",
    "signal": "launch.checkpoint_seconds_before_limit",
    "time": "launch.time_limit_minutes",
    "wait": "nothing",
    "wrap": "nothing",
}
_SHORT_OPTIONS = {
    "A": "account", "C": "constraint", "D": "chdir", "J": "job-name", "N": "nodes", "a": "array",
    "c": "cpus-per-task", "d": "dependency", "e": "error", "k": "no-kill", "n": "ntasks",
    "o": "output", "p": "partition", "q": "qos", "t": "time", "x": "exclude",
}  # fmt: skip
_OPTION_VALUE = re.compile(r"[\w.,:;=+*@%/&|!?<>()\[\]{}~^ -]*", re.ASCII)
_CONTROL_CHARACTER = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")  # all but a tab


@dataclass(frozen=True, kw_only=True)
class SlurmConfig:
    """Options of sbatch by their own names, and what runs before and around the ranks.

    https://slurm.schedmd.com/sbatch.html
    """

    partition: str | None = None
    """The partition; null takes the cluster's default."""
    account: str | None = None
    """The account; null takes the user's default."""
    qos: str | None = None
    """Quality of service."""
    constraint: str | None = None
    """Features that nodes must have, as in ``a100&nvlink``."""
    reservation: str | None = None
    """A reservation to run in."""
    exclusive: bool = False
    """Whether nodes are shared with no other job."""
    gres: str | None = None
    """Generic resources of each node, as in ``gpu:a100:8``; instead of launch.gpus_per_node."""
    mem: str | None = None
    """Memory of each node, as in ``480G``; ``0`` is all of it."""
    exclude: str | None = None
    """Nodes to stay away from, as in ``node[7,12]``."""
    nodelist: str | None = None
    """Nodes that the job must have."""
    mail_user: str | None = None
    """Who gets mail."""
    mail_type: str | None = None
    """About what, as in ``END,FAIL``."""
    dependency: str | None = None
    """Jobs to wait for, as in ``afterok:1234``."""
    array_limit: int | None = None
    """Tasks of ingest or distill that run at the same time; null sets no limit."""
    setup_lines: tuple[str, ...] = ()
    """Lines of bash before the ranks start: ``module load cuda``, ``export NCCL_...``."""
    container_image: str | None = None
    """An image for the ranks."""
    container_mounts: tuple[str, ...] = ()
    """Mounts of it, each ``SOURCE:TARGET``; the run folder has to be among them."""
    container_runtime: Literal["pyxis", "apptainer"] = "pyxis"
    """What runs the image: srun's plugin pyxis, or apptainer."""
    container_python: str = "python"
    """The Python of the image, which has boxless installed."""
    extra: dict[str, str] = field(default_factory=dict)
    """Other options of sbatch by their long names, as in ``{licenses: "a:1", comment: x}``; an
    empty value gives the option alone."""

    def __post_init__(self) -> None:
        for name, value in self._texts().items():
            # `--set launch.slurm.qos="$QOS"` with QOS not set. In extra "" is an option alone.
            if not value and not name.startswith("extra."):
                raise BoxlessError(f"{name} is empty; expected a value, or null to leave it out.")
            if not _OPTION_VALUE.fullmatch(value):
                raise BoxlessError(
                    f"{name} is {value!r}; expected one line without quotes, `#`, `$`, backslash "
                    "or backquote."
                )
        for line in self.setup_lines:
            if _CONTROL_CHARACTER.search(line):
                raise BoxlessError(
                    f"setup_lines has {line!r}; expected one line an item, without control "
                    "characters."
                )
        if self.array_limit is not None and self.array_limit < 1:
            raise BoxlessError(f"array_limit is {self.array_limit}; expected 1 or more, or null.")
        for mount in self.container_mounts:
            if "," in mount:
                raise BoxlessError(
                    f"container_mounts has {mount!r}; expected one mount an item, as a comma "
                    "begins the next one."
                )
        if self.container_mounts and self.container_image is None:
            raise BoxlessError("container_mounts needs container_image; got mounts of no image.")
        self._check_extra()

    @property
    def options(self) -> dict[str, str]:
        """Options of sbatch by their long names, those that are set."""
        options = {
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "constraint": self.constraint,
            "reservation": self.reservation,
            "gres": self.gres,
            "mem": self.mem,
            "exclude": self.exclude,
            "nodelist": self.nodelist,
            "mail-user": self.mail_user,
            "mail-type": self.mail_type,
            "dependency": self.dependency,
            "exclusive": "" if self.exclusive else None,
        }
        return {name: text for name, text in options.items() if text is not None} | self.extra

    def _texts(self) -> dict[str, str]:
        texts = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "setup_lines"}
        found = {name: value for name, value in texts.items() if isinstance(value, str)}
        found |= {f"container_mounts[{i}]": m for i, m in enumerate(self.container_mounts)}
        return found | {f"extra.{name}": value for name, value in self.extra.items()}

    def _check_extra(self) -> None:
        named = {f.name.replace("_", "-") for f in fields(self)}
        for option in self.extra:
            if not re.fullmatch(r"[A-Za-z][A-Za-z-]*", option):
                raise BoxlessError(
                    f"extra has the option {option!r}; expected a long name of sbatch without "
                    "dashes before it, as in licenses."
                )
            name = _SHORT_OPTIONS.get(option, option)
            if name in _OWN_OPTIONS:
                raise BoxlessError(
                    f"extra has {option!r}, which boxless sets itself; expected it in "
                    f"{_OWN_OPTIONS[name]}."
                )
            if name in named:
                key = name.replace("-", "_")
                raise BoxlessError(f"extra has {option!r}; expected it as launch.slurm.{key}.")
            if len(option) == 1:
                raise BoxlessError(f"extra has {option!r}; expected the long name of the option.")
