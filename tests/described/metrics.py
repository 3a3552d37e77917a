"""Reads a page of numbers as Prometheus does, and says which families it holds."""

import re
import sys

from prometheus_client.openmetrics.parser import text_string_to_metric_families as strict
from prometheus_client.parser import text_string_to_metric_families

text = sys.stdin.read()
names = []
for family in text_string_to_metric_families(text):
    assert family.type != "unknown" and family.documentation, family
    names.append(family.name)
    if family.type == "histogram":
        buckets, counts = {}, {}
        for sample in family.samples:
            of = tuple(sorted((key, value) for key, value in sample.labels.items() if key != "le"))
            if sample.name.endswith("_bucket"):
                buckets.setdefault(of, []).append(sample.value)
            if sample.name.endswith("_count"):
                counts[of] = sample.value
        for of, counted in buckets.items():
            assert counted == sorted(counted) and counted[-1] == counts[of], family
assert len(names) == len(set(names)), names
# The later format is the stricter one: it wants the same with counters by their bare names, and an end.
openmetrics = re.sub(r"^(# \w+ \w+)_total ", r"\1 ", text, flags=re.M) + "# EOF\n"
assert [family.name for family in strict(openmetrics)] == names
print("\n".join(names))
