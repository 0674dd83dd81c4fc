"""What more than one folder's tests ask pytest for."""

import pytest

from support.gateway import binary


@pytest.fixture(scope="session")
def tollgate() -> str:
    return binary()
