"""All readers of strangers' files, by their names."""

from tests.fuzz import beside, weights

READERS = {**weights.READERS, **beside.READERS}
