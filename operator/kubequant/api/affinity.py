"""Pod affinity as in a Kubernetes pod's spec, bounded: what makes sense for one pod of a run."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, StrictInt

from kubequant.api.base import Model, Rule
from kubequant.api.fields import TermKey, TermNamespace, TermValue

Weight = Annotated[StrictInt, Field(ge=1, le=100)]
_Values = Annotated[tuple[TermValue, ...], Field(max_length=32)]

_VALUES_AS_OPERATOR = Rule(
    message="must be given with every operator but Exists and DoesNotExist, which take none",
    holds=lambda r: bool(r.values) != (r.operator in {"Exists", "DoesNotExist"}),
    cel="(has(self.values) && size(self.values) > 0) "
    "!= (self.operator in ['Exists', 'DoesNotExist'])",
    field="values",
)


class NodeSelectorRequirement(Model):
    """One condition on a node's labels or fields."""

    key: TermKey
    """The label's key."""
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]
    """How the label is compared."""
    values: _Values = ()
    """What the label is compared with."""

    rules: ClassVar[tuple[Rule, ...]] = (_VALUES_AS_OPERATOR,)


_Requirements = Annotated[tuple[NodeSelectorRequirement, ...], Field(max_length=16)]


class NodeSelectorTerm(Model):
    """Conditions that hold together."""

    match_expressions: _Requirements = ()
    """Conditions on the node's labels."""
    match_fields: _Requirements = ()
    """Conditions on the node's fields, like metadata.name."""


class NodeSelector(Model):
    """Terms of which one must hold."""

    node_selector_terms: Annotated[tuple[NodeSelectorTerm, ...], Field(min_length=1, max_length=8)]
    """The terms; a node needs to satisfy one of them."""


class PreferredNode(Model):
    """A term that makes a node more welcome."""

    weight: Weight
    """How much the term counts, from 1 to 100."""
    preference: NodeSelectorTerm
    """The term."""


class NodeAffinity(Model):
    """Which nodes a pod may or should run on."""

    required_during_scheduling_ignored_during_execution: NodeSelector | None = None
    """What the node must satisfy."""
    preferred_during_scheduling_ignored_during_execution: Annotated[
        tuple[PreferredNode, ...], Field(max_length=8)
    ] = ()
    """What the node should satisfy."""


class LabelSelectorRequirement(Model):
    """One condition on a pod's labels."""

    key: TermKey
    """The label's key."""
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    """How the label is compared."""
    values: _Values = ()
    """What the label is compared with."""

    rules: ClassVar[tuple[Rule, ...]] = (_VALUES_AS_OPERATOR,)


class LabelSelector(Model):
    """Conditions on labels that hold together."""

    match_labels: Annotated[dict[TermKey, TermValue], Field(max_length=16)] = Field(
        default_factory=dict
    )
    """Labels that must be there with these values."""
    match_expressions: Annotated[tuple[LabelSelectorRequirement, ...], Field(max_length=16)] = ()
    """Conditions on labels."""


class PodAffinityTerm(Model):
    """Pods that count, and how near is near."""

    label_selector: LabelSelector | None = None
    """Which pods count."""
    namespaces: Annotated[tuple[TermNamespace, ...], Field(max_length=16)] = ()
    """The namespaces of those pods; where empty, the QuantizationJob's own."""
    topology_key: TermKey
    """The node label whose equal values mean the same place, like kubernetes.io/hostname."""


class PreferredPodAffinity(Model):
    """A term that makes a node more welcome."""

    weight: Weight
    """How much the term counts, from 1 to 100."""
    pod_affinity_term: PodAffinityTerm
    """The term."""


class PodAffinity(Model):
    """Which pods the worker must or should be near, or keep away from."""

    required_during_scheduling_ignored_during_execution: Annotated[
        tuple[PodAffinityTerm, ...], Field(max_length=8)
    ] = ()
    """What must hold."""
    preferred_during_scheduling_ignored_during_execution: Annotated[
        tuple[PreferredPodAffinity, ...], Field(max_length=8)
    ] = ()
    """What should hold."""


class Affinity(Model):
    """Rules for the choice of the node, as in a pod's spec."""

    node_affinity: NodeAffinity | None = None
    """Rules by the node's labels."""
    pod_affinity: PodAffinity | None = None
    """Rules to be near other pods."""
    pod_anti_affinity: PodAffinity | None = None
    """Rules to keep away from other pods."""
