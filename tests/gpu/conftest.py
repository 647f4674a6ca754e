"""What the GPU tests share; each skips, with the reason, where it lacks what it needs."""

import pytest
import torch


@pytest.fixture(scope="session")
def device():
    """The first GPU, with float32 products in float32."""
    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    assert not torch.backends.cuda.matmul.allow_tf32
    return torch.device("cuda", 0)
