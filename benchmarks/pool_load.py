"""Ten minutes of a teacher that is used by people and by a job at the same time; and two jobs that share it.

One replica of MiniLM-L6 on all cores (`--quick`: a tiny random model, so that a minute has enough calls), deployed as
the gateway does it. People ask it to rerank 10 documents each, at random times (Poisson), over Serve's HTTP proxy, as
the gateway's `/v1/rerank` does; a job scores through `PoolScorer` in a driver process of its own. In turns: the job
alone, both, people alone. Latency is from the moment at which somebody asked; answers of the same question must agree.

Then two jobs with calls of different sizes: the tokens that each got while both had work.

Replica, proxy, driver and the people share the cores of this machine: what the loaded figures lose to that is in them.

    python benchmarks/pool_load.py --quick --json out.json      # 1 minute of both together, 3 in all
    python benchmarks/pool_load.py --json out.json              # 10 minutes of both together, 23 in all
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from pools.cluster import Cluster, running_cluster
from pools.drivers import Drivers, rounded
from pools.fairness import fair_shares
from pools.pairs import Texts
from pools.people import DOCUMENTS, Answers, People
from pools.stretch import Stretch
from pools.teachers import real_teacher

from pipelines.devices import available_cpus, device_name
from pipelines.pretrained import quiet_loading
from services.store import Teacher

MAX_LENGTH = 256
CHUNK = {"lists": 16, "per_list": 24}
"""A request of the default spec."""


def mixed(
    cluster: Cluster, drivers: Drivers, teacher: Teacher, *, rate: float, rounds: int, minute: float, settle: float
) -> tuple[dict[str, Any], dict[str, float]]:
    """Rounds of one `minute` the job alone, two both, one people alone; and what happens in them."""
    people = People(cluster.url(teacher.name), cluster.token, rate=rate)
    people.ask(settle, Answers())  # connections, caches of the proxy
    idle, loaded = Answers(), Answers()
    alone: list[Stretch] = []
    together: list[Stretch] = []
    with drivers.start(teacher, drivers.requests("chunks", **CHUNK), job="batch", sleeping=False) as job:
        for number in range(rounds):
            job.ask("start")
            time.sleep(settle)
            start = time.monotonic()
            time.sleep(minute)
            middle = time.monotonic()
            people.ask(2 * minute, loaded)
            end = time.monotonic()
            log = job.ask("log")
            alone.append(Stretch.of(log, start, middle))
            together.append(Stretch.of(log, middle, end))
            outcome = job.ask("stop")
            people.ask(minute, idle)
            print(
                f"  round {number + 1}: job {alone[-1].pairs_per_s:.1f} pairs/s alone, {together[-1].pairs_per_s:.1f} "
                f"with people; people so far: {rounded(idle.percentiles())} alone, {rounded(loaded.percentiles())} "
                f"with the job",
                flush=True,
            )
    lone, both = (sum(stretches[1:], stretches[0]) for stretches in (alone, together))
    asked_pairs = DOCUMENTS * len(loaded.seconds) / (2 * minute * rounds)
    figures = {
        "people alone": idle.figures(),
        "people with the job": loaded.figures(),
        "kinds of errors": dict(idle.errors + loaded.errors),
        "job alone, pairs/s": lone.pairs_per_s,
        "job with people, pairs/s": both.pairs_per_s,
        "people with the job, pairs/s": asked_pairs,
        "calls of the job": both.per_call,
        **outcome,
    }
    ratios = {
        f"interactive_{name.split()[0]}_loaded_vs_idle": value / idle.percentiles()[name]
        for name, value in loaded.percentiles().items()
    }
    ratios["batch_with_people_vs_alone"] = both.pairs_per_s / lone.pairs_per_s
    ratios["all_pairs_with_people_vs_alone"] = (both.pairs_per_s + asked_pairs) / lone.pairs_per_s
    return figures, ratios


def main() -> None:
    """Measure, print, write; an error of a request, other than 429, ends it with status 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny model, one minute")
    parser.add_argument("--json", type=Path, help="write device, figures and ratios here")
    parser.add_argument("--rate", type=float, help="questions a second; default 0.5, with --quick 5")
    options = parser.parse_args()
    rate = options.rate or (5.0 if options.quick else 0.5)
    rounds, minute, settle = (2, 15.0, 5.0) if options.quick else (5, 60.0, 15.0)
    quiet_loading()
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        teacher = real_teacher(work / "teacher", max_length=MAX_LENGTH, tiny=options.quick)
        with running_cluster(num_cpus=available_cpus(), folder=work / "cluster") as cluster:
            cluster.deploy([teacher])
            drivers = Drivers(cluster, Texts.of(work / "teacher"), work)
            print(f"{teacher.name}: people ask {rate:g} times a second", flush=True)
            found, ratios = mixed(cluster, drivers, teacher, rate=rate, rounds=rounds, minute=minute, settle=settle)
            print("two jobs share it", flush=True)
            shares, ratios["fairness_min_over_max"] = fair_shares(
                drivers, teacher, seconds=2 * minute, settle=settle, sleeping=False
            )
    figures = {
        "teacher": "tiny, random weights" if options.quick else "all-MiniLM-L6-v2 with one logit",
        "backend": teacher.contract["backend"],
        "cores": available_cpus(),
        "load average at the start": load_before,
        "questions a second": rate,
        **found,
        "two jobs": shares,
    }
    report = {
        "device": device_name(torch.device("cpu")),
        "figures": rounded(figures),
        "ratios": {name: round(value, 3) for name, value in ratios.items()},
    }
    print(json.dumps(report, indent=1))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if found["kinds of errors"]:
        raise SystemExit(f"requests failed: {found['kinds of errors']}")


if __name__ == "__main__":
    main()
