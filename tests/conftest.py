import pytest
import torch
import zoo

# The models are tiny: more threads cost more than they bring, above all beside another job.
torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    """What one type's twin shows, the slow tests show."""
    for item in items:
        case = getattr(item, "callspec", None)
        family = case and case.params.get("family")
        if family in zoo.EVERY and zoo.example(family).twin:
            item.add_marker(pytest.mark.slow)
