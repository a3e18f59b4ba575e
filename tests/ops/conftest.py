import pytest

from mask2former_ops.library import vector_lanes


@pytest.fixture(params=[4, 8, 16])
def lanes(request):
    """Floats in a vector of the compiled operators, as far as this machine has vectors of them."""
    used = vector_lanes(request.param)
    try:
        if used != request.param and not (used == 0 and request.param == 4):
            pytest.skip(f"vectors have {used} floats here")
        yield used
    finally:
        vector_lanes()
