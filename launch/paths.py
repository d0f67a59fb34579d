"""All paths of a job."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class JobPaths:
    """The files in a job's log folder."""

    folder: Path

    def rank_log(self, rank: int) -> Path:
        """What a rank writes to its stderr (and stdout, unless it is rank 0)."""
        return self.folder / f"rank-{rank}.log"

    def launcher_log(self, node_rank: int) -> Path:
        """What the program that starts the ranks of a node writes."""
        return self.folder / f"launcher-{node_rank}.log"

    def failure(self, rank: int) -> Path:
        """How a rank failed."""
        return self.folder / f"rank-{rank}.failure.json"

    @property
    def failures(self) -> list[Path]:
        """The failures of all ranks."""
        return sorted(self.folder.glob("rank-*.failure.json"))

    @property
    def flight_records(self) -> Path:
        """Where NCCL's record of a rank's collectives goes; PyTorch appends the rank's number."""
        return self.folder / "nccl-record-"

    @property
    def events(self) -> Path:
        """Starts, restarts and ends: one JSON object a line."""
        return self.folder / "events.jsonl"

    @property
    def script(self) -> Path:
        """The batch script of a Slurm job."""
        return self.folder / "job.sh"

    @property
    def submitted(self) -> Path:
        """Which Slurm job was submitted last, as JSON."""
        return self.folder / "job.json"

    def outcome(self, job_id: str) -> Path:
        """How a Slurm job ended, written by the job: it stays away while the job may continue."""
        return self.folder / f"slurm-{job_id}.outcome"

    def slurm_output(self, job_id: str) -> Path:
        """What the first rank of a Slurm job prints (of an array: what its first task prints)."""
        return self.folder / f"slurm-{job_id}.out"

    def slurm_errors(self, job_id: str) -> Path:
        """What the script, srun and the agents of a Slurm job write."""
        return self.folder / f"slurm-{job_id}.err"
