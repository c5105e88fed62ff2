"""Addresses of models, texts and artifacts, with what may open them."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, StrictBool, StrictStr

from kubequant.api.base import Model, Pattern, Rule
from kubequant.api.fields import DatasetURI, HTTPEndpoint, ModelURI, ObjectName, OutputURI

Region = Annotated[
    StrictStr,
    Field(max_length=64),
    Pattern("[-A-Za-z0-9]*", "a region's name, like eu-central-1"),
]
Revision = Annotated[
    StrictStr,
    Field(min_length=1, max_length=128),
    Pattern("[A-Za-z0-9][-A-Za-z0-9_./]*", "a branch, tag or commit"),
]
FieldName = Annotated[
    StrictStr,
    Field(min_length=1, max_length=128),
    Pattern(r"[^\x00-\x1f\x7f]+", "a column's name, without control characters"),
]

_REVISION_OF_HUB = Rule(
    message="is only for hf:// addresses; remove it",
    holds=lambda place: place.revision is None or place.uri.startswith("hf://"),
    cel="!has(self.revision) || self.uri.startsWith('hf://')",
    field="revision",
)
_S3_OF_S3 = Rule(
    message="is only for s3:// addresses; remove it",
    holds=lambda place: place.s3 is None or place.uri.startswith("s3://"),
    cel="!has(self.s3) || self.uri.startsWith('s3://')",
    field="s3",
)
_SECRET_OF_REMOTE = Rule(
    message="is only for hf:// and s3:// addresses; remove it",
    holds=lambda place: place.secret_ref is None or place.uri.startswith(("hf://", "s3://")),
    cel="!has(self.secretRef) || self.uri.startsWith('hf://') || self.uri.startsWith('s3://')",
    field="secretRef",
)


class SecretRef(Model):
    """A Secret in the same namespace.

    Its keys HF_TOKEN, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN are read.
    """

    name: ObjectName
    """The Secret's name."""


class S3Options(Model):
    """How to reach the bucket of an s3:// address."""

    endpoint: HTTPEndpoint = ""
    """The S3 server's address; empty for AWS."""
    region: Region = ""
    """The bucket's region; empty for the default of the endpoint or environment."""


class OutputS3Options(Model):
    """How to reach the bucket of the output, and how the store encrypts what it is given."""

    endpoint: HTTPEndpoint = ""
    """The S3 server's address; empty for AWS."""
    region: Region = ""
    """The bucket's region; empty for the default of the endpoint or environment."""
    server_side_encryption: Literal["", "AES256", "aws:kms", "aws:kms:dsse"] = ""
    """How the store encrypts at rest; empty for the bucket's own setting."""
    kms_key_id: Annotated[
        StrictStr,
        Field(max_length=256),
        Pattern("[-A-Za-z0-9:/_]*", "a KMS key's id, alias or ARN"),
    ] = ""
    """The KMS key to encrypt with; only for the aws:kms settings."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            message="needs serverSideEncryption aws:kms or aws:kms:dsse",
            holds=lambda s: not s.kms_key_id or s.server_side_encryption.startswith("aws:kms"),
            cel="!has(self.kmsKeyId) || self.kmsKeyId == '' || (has(self.serverSideEncryption) "
            "&& self.serverSideEncryption.startsWith('aws:kms'))",
            field="kmsKeyId",
        ),
    )


class ModelSource(Model):
    """The model to quantize."""

    uri: ModelURI
    """Where the model is: hf://owner/name, s3://bucket/prefix or pvc://claim/path; file:// for a
    local run only."""
    revision: Revision | None = None
    """For hf:// only: a branch, tag or commit (default main). It is resolved to a commit, which
    status records."""
    s3: S3Options | None = None
    """For s3:// only: endpoint and region."""
    secret_ref: SecretRef | None = None
    """The Secret that holds a token or keys for the model; for hf:// and s3:// only."""
    trust_remote_code: StrictBool = False
    """Run Python code that comes with the model. The administrator must allow it too."""
    allow_pickle: StrictBool = False
    """Read pickled weights, which can run code, where there are no safetensors. The administrator
    must allow it too."""

    rules: ClassVar[tuple[Rule, ...]] = (_REVISION_OF_HUB, _S3_OF_S3, _SECRET_OF_REMOTE)

    @property
    def effective_revision(self) -> str | None:
        """The revision with its default; None where the address has no revisions."""
        return (self.revision or "main") if self.uri.startswith("hf://") else None


class Dataset(Model):
    """A text to calibrate with or to measure on."""

    uri: DatasetURI
    """Where the text is: hf://owner/name, s3://bucket/key or pvc://claim/path; file:// for a local
    run only."""
    revision: Revision | None = None
    """For hf:// only: a branch, tag or commit (default main)."""
    split: (
        Annotated[
            StrictStr,
            Field(min_length=1, max_length=64),
            Pattern("[A-Za-z0-9_.]+", "a split's name"),
        ]
        | None
    ) = None
    """The split of a dataset that has several. Default train."""
    text_field: FieldName | None = None
    """The column that holds the text. Default text. Not together with messagesField."""
    messages_field: FieldName | None = None
    """The column that holds chat messages (role and content). Not together with textField."""
    s3: S3Options | None = None
    """For s3:// only: endpoint and region."""
    secret_ref: SecretRef | None = None
    """The Secret that holds a token or keys for the dataset; for hf:// and s3:// only."""

    rules: ClassVar[tuple[Rule, ...]] = (
        _REVISION_OF_HUB,
        _S3_OF_S3,
        _SECRET_OF_REMOTE,
        Rule(
            message="must not be set together with textField; keep the one that the dataset has",
            holds=lambda d: d.messages_field is None or d.text_field is None,
            cel="!has(self.messagesField) || !has(self.textField)",
            field="messagesField",
        ),
    )

    @property
    def effective_revision(self) -> str | None:
        """The revision with its default; None where the address has no revisions."""
        return (self.revision or "main") if self.uri.startswith("hf://") else None

    @property
    def effective_split(self) -> str:
        """The split with its default."""
        return self.split or "train"

    @property
    def effective_text_field(self) -> str | None:
        """The text column with its default; None where messages are read."""
        return None if self.messages_field is not None else self.text_field or "text"

    def is_same_text(self, other: Dataset) -> bool:
        """Say whether both name the same text, as far as their addresses tell."""
        mine, theirs = (
            (f"{one.uri.removesuffix('/')}/", one.effective_revision, one.effective_split)
            for one in (self, other)
        )
        return mine == theirs


class TaskFiles(Model):
    """A folder of tasks for the lm-evaluation-harness: YAML files and the data they name."""

    uri: DatasetURI
    """Where the folder is: hf://owner/name, s3://bucket/prefix or pvc://claim/path; file:// for a
    local run only."""
    revision: Revision | None = None
    """For hf:// only: a branch, tag or commit (default main)."""
    s3: S3Options | None = None
    """For s3:// only: endpoint and region."""
    secret_ref: SecretRef | None = None
    """The Secret that holds a token or keys for the folder; for hf:// and s3:// only."""

    rules: ClassVar[tuple[Rule, ...]] = (_REVISION_OF_HUB, _S3_OF_S3, _SECRET_OF_REMOTE)

    @property
    def effective_revision(self) -> str | None:
        """The revision with its default; None where the address has no revisions."""
        return (self.revision or "main") if self.uri.startswith("hf://") else None


class Output(Model):
    """Where the artifact is published."""

    uri: OutputURI
    """The folder to publish under: s3://bucket/prefix or pvc://claim/path; file:// for a local run
    only."""
    s3: OutputS3Options | None = None
    """For s3:// only: endpoint, region and encryption."""
    secret_ref: SecretRef | None = None
    """The Secret that holds keys for the bucket; for s3:// only."""

    rules: ClassVar[tuple[Rule, ...]] = (
        _S3_OF_S3,
        Rule(
            message="is only for s3:// addresses; remove it",
            holds=lambda o: o.secret_ref is None or o.uri.startswith("s3://"),
            cel="!has(self.secretRef) || self.uri.startsWith('s3://')",
            field="secretRef",
        ),
    )
