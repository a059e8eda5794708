"""Ranges in braces that no folder of tars has."""

import pytest

from vlx.core.errors import UserError
from vlx.data.sources.webdataset import WebDatasetSource


@pytest.mark.parametrize(
  ("first", "last"),
  [("0", "999999999999"), ("0", "9" * 30), ("0", "9" * 10_000), ("0" * 10_000, "9"), ("5", "3")],
)
def test_ranges_without_end_are_told(tmp_path, first, last):
  with pytest.raises(UserError, match="from 1 to 1000000 may be|digits; 15 are the most"):
    WebDatasetSource(f"{tmp_path}/{{{first}..{last}}}.tar", "train")
