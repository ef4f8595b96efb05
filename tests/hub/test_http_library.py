"""The library whose exceptions are caught is the one that sends the requests."""

from __future__ import annotations

import pytest
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import get_session

from xares_bench.hub.http_library import http_library


@pytest.mark.versions
def test_it_is_the_library_of_the_hubs_errors_and_of_its_session() -> None:
    assert issubclass(HfHubHTTPError, http_library().HTTPError)
    assert isinstance(get_session(), http_library().Client)
