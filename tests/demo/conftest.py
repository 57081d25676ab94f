import pytest

from demo.scene import Frame, render

SMALL = {"width": 214, "height": 120, "frames": 24}


@pytest.fixture(scope="session")
def frames() -> list[Frame]:
    """The whole story of the demo clip, a quarter as wide and with an eighth of its frames."""
    return list(render(**SMALL))
