"""What every model of the API is built on: the frozen base, the rules and how a document is read.

A `Rule` is one condition written twice, side by side: in CEL for the API server and in Python for
everything else. Both carry one message, so that `kubectl apply` and `kubequant validate` say the
same sentence. How a broken rule becomes a sentence for people stands in `problems`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ModelWrapValidatorHandler,
    ValidationInfo,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

if TYPE_CHECKING:
    from pydantic.json_schema import JsonSchemaValue

LOCAL: Final[Mapping[str, bool]] = {"local": True}
"""The validation context of a run on this machine, where `file://` means something."""

_ACRONYMS: Final = {"dtype": "DType", "gpu": "GPU", "kl": "KL", "llm": "LLM", "rt": "RT"}
VALIDATIONS: Final = "x-kubernetes-validations"


def camel(name: str) -> str:
    """Return a field's name as JSON has it: `max_gpu_memory` is `maxGPUMemory`."""
    first, *rest = name.split("_")
    return first + "".join(_ACRONYMS.get(word, word.capitalize()) for word in rest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One condition on a value, in CEL and in Python, with the sentence for whoever breaks it.

    Stands in `Annotated[...]` for a scalar or in the `rules` of a model. `cel` is None where CEL
    cannot say it within an API server's cost budget; then only the models hold it. `field` is the
    guarded field below the value ("uri", "model.uri"), empty for the value itself. `in_cluster`
    marks what a run on a laptop may break.
    """

    message: str
    holds: Callable[[Any], bool]
    cel: str | None
    field: str = ""
    in_cluster: bool = False

    def applies(self, context: Any) -> bool:
        """Say whether the rule counts under a validation context (see `LOCAL`)."""
        return not (self.in_cluster and isinstance(context, Mapping) and context.get("local"))

    def as_validation(self) -> JsonSchemaValue:
        """Return the entry of `x-kubernetes-validations`; the rule must have CEL."""
        entry: JsonSchemaValue = {"rule": self.cel, "message": self.message}
        if self.field:
            entry["fieldPath"] = f".{self.field}"
        return entry

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Check a scalar after its own type did."""

        def check(value: Any, info: ValidationInfo) -> Any:
            if self.applies(info.context) and not self.holds(value):
                raise PydanticCustomError("rule", "{sentence}", {"sentence": self.message})
            return value

        return core_schema.with_info_after_validator_function(check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Write the CEL beside the field that it guards."""
        return with_validations(handler(schema), (self,))


@dataclass(frozen=True, slots=True)
class Pattern:
    """A string's form, with words for it: `allowed` completes the sentence "must be ...".

    The expression is matched against the whole string and must read the same in Python, RE2 and
    ECMAScript, without single quotes. `explained` also writes it as CEL, since an API server's own
    message for a pattern shows only the expression.
    """

    regex: str
    allowed: str
    explained: bool = True

    @property
    def message(self) -> str:
        """The sentence for a string of another form."""
        return f"must be {self.allowed}"

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Match the string after its type and length were checked."""
        compiled = re.compile(self.regex)

        def check(value: str) -> str:
            if compiled.fullmatch(value) is None:
                raise PydanticCustomError("rule", "{sentence}", {"sentence": self.message})
            return value

        return core_schema.no_info_after_validator_function(check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Write the pattern and, where it is explained, the CEL with our sentence."""
        written = {**handler(schema), "pattern": f"^(?:{self.regex})$"}
        if not self.explained:
            return written
        rule = Rule(
            message=self.message,
            holds=lambda _: True,
            cel=f"self.matches(r'^(?:{self.regex})$')",
        )
        return with_validations(written, (rule,))


def with_validations(schema: JsonSchemaValue, rules: tuple[Rule, ...]) -> JsonSchemaValue:
    """Return `schema` with the CEL of `rules` added."""
    entries = [rule.as_validation() for rule in rules if rule.cel is not None]
    if not entries:
        return schema
    return {**schema, VALIDATIONS: [*schema.get(VALIDATIONS, []), *entries]}


class Model(BaseModel):
    """A frozen record: snake_case in Python, camelCase in JSON, unknown fields refused.

    Python code names fields by attribute; documents are read by `problems.parse`, which takes the
    JSON names only, as the API server does.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=camel,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
        use_attribute_docstrings=True,
        # The value is named by our own sentences, which know what may be a secret.
        hide_input_in_errors=True,
    )

    rules: ClassVar[tuple[Rule, ...]] = ()

    @model_validator(mode="wrap")
    @classmethod
    def _checked(
        cls, data: Any, handler: ModelWrapValidatorHandler[Self], info: ValidationInfo
    ) -> Self:
        if isinstance(data, cls):
            # It was checked when it was made, perhaps under another context: a report of a local
            # run holds a spec that only a local run may have.
            return data
        if isinstance(data, dict):
            # An API server drops nulls of fields that are not nullable, and none of ours is.
            data = {key: value for key, value in data.items() if value is not None}
        model = handler(data)
        broken = [
            (rule.field, rule.message)
            for rule in cls.rules
            if rule.applies(info.context) and not rule.holds(model)
        ]
        if broken:
            sentence = "; ".join(f"{field} {message}".strip() for field, message in broken)
            raise PydanticCustomError(
                "rules", "{sentence}", {"sentence": sentence, "broken": broken}
            )
        return model

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Write the model's rules beside its fields."""
        written = handler.resolve_ref_schema(handler(schema))
        written.update(with_validations(written, cls.rules))
        return written

    def to_json(self) -> dict[str, Any]:
        """Return the JSON value: camelCase names, what is None left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)
