"""All readers of strangers' files, by their names."""

from tests.fuzz import beside, diffusion, records, weights

READERS = {**weights.READERS, **beside.READERS, **diffusion.READERS, **records.READERS}
