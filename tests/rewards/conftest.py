import pytest

from vrl_jax.rewards.math_verifier import MathVerifier


@pytest.fixture(scope="session")
def verifier():
    with MathVerifier(workers=1, seconds=5) as pool:
        yield pool
