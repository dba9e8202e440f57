"""Turns: jobs share a replica by tokens, whatever the size of their calls; people go first; nothing is lost."""

import asyncio
import random
import threading
from collections import Counter

import pytest

from services.teacher_pool import turns as turns_module
from services.teacher_pool.turns import Turns


def test_one_call_at_a_time_in_order() -> None:
    async def order() -> list[int]:
        turns, done, at_once = Turns(), [], 0

        async def call(number: int) -> None:
            nonlocal at_once
            async with turns.turn("a", 10):
                at_once += 1
                assert at_once == 1
                await asyncio.sleep(0)
                done.append(number)
                at_once -= 1

        await asyncio.gather(*map(call, range(10)))
        assert turns.depth == 0
        return done

    assert asyncio.run(order()) == list(range(10))


@pytest.mark.parametrize("sizes", [{"a": 64, "b": 64}, {"a": 512, "b": 64}, {"a": 100, "b": 300, "c": 17}])
def test_jobs_with_work_left_get_equal_tokens(sizes: dict[str, int]) -> None:
    """Two calls of each wait at a time, as drivers do; one job's calls are many times as large as the other's."""

    async def share() -> Counter[str]:
        turns, served = Turns(), Counter[str]()

        async def calls(job: str) -> None:
            while sum(served.values()) < 200 * max(sizes.values()):
                async with turns.turn(job, sizes[job]):
                    await asyncio.sleep(0)
                    served[job] += sizes[job]

        await asyncio.gather(*(calls(job) for job in sizes for _ in range(2)))
        return served

    served = asyncio.run(share())
    assert min(served.values()) > 0.95 * max(served.values()), served


def test_a_job_that_comes_late_is_owed_nothing_and_waits_for_nobody() -> None:
    async def order() -> list[str]:
        turns, done, five = Turns(), [], asyncio.Event()

        async def call(job: str) -> None:
            async with turns.turn(job, 100):
                await asyncio.sleep(0)
                done.append(job)
                if len(done) == 5:
                    five.set()

        first = [asyncio.create_task(call("old")) for _ in range(10)]
        await five.wait()
        await asyncio.gather(*first, *(asyncio.create_task(call("new")) for _ in range(3)))
        return done

    done = asyncio.run(order())
    assert done[:5] == ["old"] * 5
    assert "new" in done[5:8], "it does not wait for all that were there before"
    assert done[5:11].count("old") >= 3, "nor does it push them away"


@pytest.mark.parametrize("seed", range(20))
def test_cancelled_calls_keep_nobody_waiting(seed: int) -> None:
    """A driver dies: its waiting calls are cancelled, at any moment, also the one in which their turn comes."""
    rng = random.Random(seed)  # noqa: S311

    async def run() -> int:
        turns, finished = Turns(), 0

        async def call(job: str) -> None:
            nonlocal finished
            async with turns.turn(job, 10):
                for _ in range(rng.randrange(3)):
                    await asyncio.sleep(0)
            finished += 1

        tasks = [asyncio.create_task(call(rng.choice("abc"))) for _ in range(60)]
        doomed = rng.sample(tasks, 30)
        for task in doomed:
            await asyncio.sleep(0)
            task.cancel()
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
        assert turns.depth == 0
        async with turns.turn("after", 1):
            pass
        return finished

    assert asyncio.run(run()) >= 30


def test_a_batch_call_pauses_for_people_and_goes_on() -> None:
    turns, passed = Turns(), threading.Event()

    def batch() -> None:
        turns.pause_for_people()
        passed.set()

    with turns.person(), turns.person():
        assert turns.people == 2
        thread = threading.Thread(target=batch)
        thread.start()
        assert not passed.wait(0.1)
    assert passed.wait(10)
    thread.join()


def test_people_who_never_stop_do_not_stop_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns_module, "_LONGEST_PAUSE_S", 0.01)
    turns = Turns()
    with turns.person():
        turns.pause_for_people()
