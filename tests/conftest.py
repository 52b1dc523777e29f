"""What tests of more than one part need."""

import hypothesis
import pytest

from serve.engine.fake import FakeContext
from serve.telemetry.prometheus import PrometheusRecorder

# How long a test takes says nothing of the code on machines like ours.
hypothesis.settings.register_profile("untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def _same_numbers_in_any_order() -> None:
    """torch draws the same for a test whichever tests ran before it in its process."""
    import torch

    torch.manual_seed(0)


@pytest.fixture
def metrics() -> PrometheusRecorder:
    return PrometheusRecorder()


@pytest.fixture
def fake_context() -> FakeContext:
    """Three number columns, two classes."""
    return FakeContext()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` are left out where there is none."""
    import torch

    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device here"))
