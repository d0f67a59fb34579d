"""The JSON files of shards and run folders as pydantic models; each gives a JSON schema of the
site."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=0)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Phrase(_File):
    """A noun phrase of a caption."""

    text: str
    start: Annotated[Count, Field(description="first character in the caption")]
    end: Annotated[Count, Field(description="one past its last character")]
    similarity: Annotated[list[float], Field(description="to each row of KEY.objects.npy")]


class SampleJson(BaseModel):
    """KEY.json: a picture's captions and size. Fields of the source may follow."""

    model_config = ConfigDict(extra="allow")

    captions: list[str]
    width: Annotated[int, Field(ge=1, description="pixels of the upright picture")]
    height: Annotated[int, Field(ge=1, description="pixels of the upright picture")]
    image_id: int | str | None = None
    source: str | None = None
    phrases: Annotated[
        list[list[Phrase]] | None, Field(description="object shards only: a list per caption")
    ] = None


class SampleEntry(_File):
    """One sample of a shard."""

    key: Annotated[str, Field(max_length=80, description="printable ASCII without space . / \\")]
    width: Annotated[int, Field(ge=1)]
    height: Annotated[int, Field(ge=1)]
    crc32: Annotated[Count, Field(description="of the members' payloads, in the order of the tar")]
    members: Annotated[
        dict[str, tuple[Count, Count]], Field(description="extension: offset and length in bytes")
    ]


class KeyReason(_File):
    """An input with the reason why it failed, or what of it was left out."""

    key: str
    reason: str


class Counts(_File):
    """input = ok + failed."""

    input: Count
    ok: Count
    failed: Count


class ManifestFile(_File):
    """NAME.tar.json: written last; a shard is complete when it is present and matches the tar."""

    schema_: Annotated[Literal["boxless/manifest/1"], Field(alias="schema")]
    tar: str
    bytes: Annotated[Count, Field(description="size of the tar")]
    sha256: Annotated[Sha256, Field(description="of the whole tar")]
    counts: Counts
    samples: Annotated[list[SampleEntry], Field(description="in the order of the tar")]
    failures: Annotated[list[KeyReason], Field(description="inputs that gave no sample")]
    notes: Annotated[list[KeyReason], Field(description="left out inside samples that are kept")]
    fingerprint: Annotated[
        dict[str, str], Field(description="everything that shaped the shard, by name")
    ]


class CatalogShard(_File):
    """One shard of a folder."""

    tar: str
    split: str
    bytes: Count
    manifest_sha256: Sha256
    num_input: Count
    num_ok: Count
    num_failed: Count


class CatalogFile(_File):
    """catalog.json: the shards of a folder; written when all of them are complete."""

    schema_: Annotated[Literal["boxless/catalog/1"], Field(alias="schema")]
    kind: Literal["images", "objects"]
    shards: list[CatalogShard]
    about: Annotated[
        dict[str, Any], Field(description="metadata: label_names, attribute_names, dropped ...")
    ]
    shapes_sha256: Annotated[Sha256 | None, Field(description="of catalog.shapes.npy")] = None


class PlanFile(_File):
    """.claims/plan.json: what the workers of a folder have agreed on."""

    schema_: Annotated[str, Field(alias="schema", pattern="^boxless/claims/")]
    settings: Annotated[Sha256, Field(description="digest of all fingerprints")]
    fingerprint: Annotated[dict[str, str], Field(description="what all shards have in common")]
    num_shards: Count
    num_inputs: Count


class WorkerFile(_File):
    """.claims/worker-TOKEN: rewritten every few seconds; NAME.tar.claim is a hard link to it."""

    host: str
    pid: int
    machine: Annotated[str, Field(description="host name and boot id")]
    token: str
    settings: Sha256
    lease_seconds: float
    counter: Annotated[Count, Field(description="grows with each heartbeat")]
    tar: Annotated[str | None, Field(description="the shard being written")]
    tar_seconds: float
    num_done: Count
    num_inputs: Count
    is_stalled: bool
    is_starting: bool
    rate: Annotated[float, Field(description="inputs per second, over two minutes")]


class DataState(_File):
    """The state of the data in a checkpoint."""

    position: Annotated[Count, Field(description="the next micro-batch")]
    order: Annotated[Sha256, Field(description="digest of shards and settings of the order")]


class StageFile(_File):
    """stage.json of a complete stage, started.json of one under way."""

    schema_: Annotated[Literal["boxless/stage/1"], Field(alias="schema")]
    stage: str
    fingerprint: Annotated[Sha256, Field(description="digest of shaped_by")]
    shaped_by: Annotated[
        dict[str, Any], Field(description="recipe parts, digests of inputs, version")
    ]
    seconds: float
    finished: Annotated[str, Field(description="ISO 8601; empty in started.json")]
    outputs: Annotated[
        dict[str, tuple[Count, Sha256]], Field(description="path: size in bytes and SHA-256")
    ]
    figures: dict[str, Any]


FILES: dict[str, type[BaseModel]] = {
    "sample": SampleJson,
    "manifest": ManifestFile,
    "catalog": CatalogFile,
    "plan": PlanFile,
    "worker": WorkerFile,
    "state": DataState,
    "stage": StageFile,
}
"""{name: model}; the schema of each is schemas/NAME.schema.json of the site."""
