"""Every objective alone, on a problem with a known teacher: it must teach, and teach as it did yesterday.

Parameters are the defaults, but for the scale that cosines need under margin_mse.

Why: a loss may match its formula and still be useless or wired to the wrong tensor; only held-out nDCG shows that
it teaches. Stored losses of the first steps show a change of value, gradient or reduction that no other test expects.
"""

import pytest
import torch
from toy_problem import STEPS, STEPS_STORED, ndcg_at_10, stored, trained, world

from pipelines.objectives.registry import OBJECTIVES

every_objective = pytest.mark.parametrize("name", sorted(OBJECTIVES))
HERE = world()


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@every_objective
def test_training_raises_held_out_ndcg(name):
    """By at least .15, and by four fifths of what it was when stored: half of a loss still teaches something."""
    untrained = ndcg_at_10(HERE, HERE.start)
    _, projection = trained(name, HERE, STEPS)
    gain = ndcg_at_10(HERE, projection) - untrained
    assert gain > max(0.15, 0.8 * (stored(name)["ndcg_at_10"] - untrained))


@every_objective
def test_the_first_steps_are_those_that_are_stored(name):
    losses, _ = trained(name, HERE, STEPS_STORED)
    assert losses == pytest.approx(stored(name)["losses"], rel=1e-6, abs=1e-9)
