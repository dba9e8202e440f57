"""What Ray Train is asked for; that it starts workers is in tests/system."""

import pytest

from pipelines.spec import WorkersSpec
from services.trainer.ray_workers import scaling


@pytest.mark.parametrize(("fewest", "expected"), [(None, 4), (4, 4), (2, (2, 4))])
def test_fewer_workers_are_borne_only_where_the_spec_says_so(fewest: int | None, expected: object) -> None:
    assert scaling(WorkersSpec(count=4, min_count=fewest)).num_workers == expected


def test_a_worker_books_what_the_spec_says() -> None:
    found = scaling(WorkersSpec(count=2, cpus_per_worker=3, gpus_per_worker=1))
    assert found.use_gpu
    assert found.resources_per_worker == {"CPU": 3, "GPU": 1}
    assert scaling(WorkersSpec(count=2, cpus_per_worker=0.5)).resources_per_worker == {"CPU": 0.5}
