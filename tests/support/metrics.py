"""Readers of a metrics exposition, by prometheus-client's own parser."""

from collections.abc import Iterator

from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample


def families(exposition: str | bytes) -> dict[str, Metric]:
    """All families by name."""
    text = exposition.decode() if isinstance(exposition, bytes) else exposition
    return {family.name: family for family in text_string_to_metric_families(text)}


def samples(exposition: str | bytes) -> Iterator[Sample]:
    """The samples of all families."""
    for family in families(exposition).values():
        yield from family.samples


def sample(exposition: str | bytes, name: str, **labels: str) -> float:
    """The sum of the samples `name` that have these labels, whatever their other labels; 0 if there is none."""
    return sum(s.value for s in samples(exposition) if s.name == name and labels.items() <= s.labels.items())
