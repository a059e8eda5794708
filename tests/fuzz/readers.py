"""All readers of strangers' files, by their names."""

from tests.fuzz import beside, records, weights

READERS = {**weights.READERS, **beside.READERS, **records.READERS}
