"""The student of method Distill: a model of its own, or the teacher with fewer layers."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field, StrictInt

from kubequant.api.base import Model, Rule
from kubequant.api.data import ModelSource, Revision, S3Options, SecretRef
from kubequant.api.fields import ModelURI


class Student(Model):
    """The smaller model that learns: a model of its own, or the teacher with fewer layers."""

    uri: ModelURI | None = None
    """Where a ready student is, in the forms of model.uri; its tokens must be the teacher's."""
    revision: Revision | None = None
    """For an hf:// uri only: a branch, tag or commit (default main)."""
    s3: S3Options | None = None
    """For an s3:// uri only: endpoint and region."""
    secret_ref: SecretRef | None = None
    """The Secret that holds a token or keys for the student; for an hf:// or s3:// uri only."""
    keep_layers: Annotated[StrictInt, Field(ge=1, le=1024)] | None = None
    """How many of the teacher's layers the student keeps, spread evenly, the first and the last
    among them."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            message="must have exactly one of uri and keepLayers",
            holds=lambda s: (s.uri is None) != (s.keep_layers is None),
            cel="has(self.uri) != has(self.keepLayers)",
        ),
        Rule(
            message="is only for an hf:// uri; remove it",
            holds=lambda s: s.revision is None or (s.uri or "").startswith("hf://"),
            cel="!has(self.revision) || (has(self.uri) && self.uri.startsWith('hf://'))",
            field="revision",
        ),
        Rule(
            message="is only for an s3:// uri; remove it",
            holds=lambda s: s.s3 is None or (s.uri or "").startswith("s3://"),
            cel="!has(self.s3) || (has(self.uri) && self.uri.startsWith('s3://'))",
            field="s3",
        ),
        Rule(
            message="is only for an hf:// or s3:// uri; remove it",
            holds=lambda s: s.secret_ref is None or (s.uri or "").startswith(("hf://", "s3://")),
            cel="!has(self.secretRef) || (has(self.uri) && "
            "(self.uri.startsWith('hf://') || self.uri.startsWith('s3://')))",
            field="secretRef",
        ),
    )

    def source(self) -> ModelSource | None:
        """Return where a ready student is fetched from: as safetensors, without code of its own."""
        if self.uri is None:
            return None
        return ModelSource(
            uri=self.uri, revision=self.revision, s3=self.s3, secret_ref=self.secret_ref
        )
