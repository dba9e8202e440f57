"""How the teacher pool scales, what one driver can feed, and what the way through the pool costs.

**All but `engine` is a SIMULATION**: a replica sleeps for as long as a teacher of a given speed would compute
(`pools/sleeping_replica.py`), on a cluster whose CPUs are only booked, so that 64 replicas fit on one machine. All else
is real: Serve, the config of `control.render` with that replica in it, the router, the turns, and `PoolScorer` in a
driver process of its own, fed with token ids of real questions and passages.

scaling   1 to 64 replicas, changed in place while one job goes on. A replica takes 1 s for a call, as a cross-encoder
          of XLM-R large's size (.6 GFLOP a token) would on a GPU that gives 17 TFLOP/s. Pairs per second of a stretch
          that begins when all replicas run and their queues are full, and ends while they are.
driver    replicas that answer at once: what one driver process moves at most, with calls of several sizes; with calls
          four times as large as `calls.py` makes them; with two drivers. The replicas share the machine's cores with
          it, so on a small machine its CPU time per call says more than its rate.
fairness  two jobs, one with short calls and one with long ones, on 8 replicas: what each got while both had work.
engine    one replica of MiniLM-L6 with all cores against the bare `TeacherEngine` in a process of its own, in turns, on
          the same requests of 256 pairs. No simulation.

    python benchmarks/pool_scaling.py --quick --json out.json      # 1, 8 and 64 replicas, short stretches: 12 minutes
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers.scoring_task import minilm_encoder
from pools.child import Child
from pools.cluster import running_cluster
from pools.drivers import Drivers, measured, rounded
from pools.fairness import fair_shares
from pools.pairs import Texts
from pools.teachers import real_teacher

from pipelines.devices import available_cpus, device_name
from pipelines.pretrained import quiet_loading
from pipelines.teacher.contract import ScoreContract
from services.store import Teacher

MOST_REPLICAS, FEW_REPLICAS = 64, 8
TOKENS_PER_SECOND, AT_ONCE = 28_000.0, 1e12
SETTLE_S = 0.25
"""More for each replica: on a small machine the first calls of many take long."""
CHUNK = {"lists": 16, "per_list": 24}
"""A request of the default spec: `candidates.queries_per_chunk` lists of `candidates.max_candidates` pairs."""
CALLS = {
    # Passages of such a length that calls.py neither cuts so many pairs nor joins them with others.
    "64 pairs a call": {"lists": 4, "per_list": 16, "between": (280, 480)},
    "256 pairs a call": {"lists": 16, "per_list": 16, "between": (60, 130)},
    "512 pairs a call": {"lists": 32, "per_list": 16, "between": (20, 62)},
}
SIMULATED = ScoreContract(model_id="simulated", revision=None, weights_hash="0" * 64, max_length=8192, dtype="bf16")
PARTS = ("engine", "driver", "fairness", "scaling")


def simulated(drivers: Drivers, name: str, replicas: int, *, tokens_per_second: float) -> Teacher:
    """A teacher that sleeps and that runs; each replica books a CPU."""
    teacher = Teacher(name=name, model_dir="none", contract=SIMULATED.to_dict(), replicas=replicas)
    drivers.cluster.deploy([teacher], sleeping={name: tokens_per_second})
    return teacher


def scaling(drivers: Drivers, counts: Sequence[int], *, seconds: float, settle: float) -> dict[str, Any]:
    """By number of replicas."""
    requests = drivers.requests("chunks", **CHUNK)
    found: dict[str, Any] = {}
    child: Child | None = None
    for replicas in counts:
        began = time.monotonic()
        teacher = simulated(drivers, "scaling", replicas, tokens_per_second=TOKENS_PER_SECOND)
        took = time.monotonic() - began
        if child is None:
            child = drivers.start(teacher, requests, job="scaled")
            child.ask("start")
        (stretch,), busy = measured([child], settle=settle + SETTLE_S * replicas, seconds=seconds)
        first = found[str(counts[0])]["pairs/s"] / counts[0] if found else stretch.pairs_per_s / replicas
        found[str(replicas)] = {
            "pairs/s": stretch.pairs_per_s,
            "of linear": stretch.pairs_per_s / (replicas * first),
            "replicas at work": stretch.tokens_per_s / (replicas * TOKENS_PER_SECOND),
            **stretch.per_call,
            "machine busy": busy,
            "seconds until all ran": took,
            "memory of a replica, MiB": statistics.median(map(_own_memory, drivers.cluster.pids(teacher.name))),
        }
        say(f"{replicas} replicas", found[str(replicas)])
    if child is not None:
        found |= child.ask("stop")
        child.close()
    return found


def driver_limit(drivers: Drivers, *, seconds: float, settle: float) -> dict[str, Any]:
    """What drivers move when replicas cost nothing."""
    teacher = simulated(drivers, "driver-limit", FEW_REPLICAS, tokens_per_second=AT_ONCE)
    come = "lengths as they come"
    cases = [(name, 1, 1, shape) for name, shape in CALLS.items()]
    cases += [
        (come, 1, 1, CHUNK),
        (f"{come}, calls 4 times as large", 1, 4, CHUNK),
        (f"{come}, 2 drivers", 2, 1, CHUNK),
    ]
    found: dict[str, Any] = {}
    for name, number, larger, shape in cases:
        requests = drivers.requests(name.split(",")[0], **shape)
        children = [drivers.start(teacher, requests, job=f"limit-{i}", larger_calls=larger) for i in range(number)]
        for child in children:
            child.ask("start")
        stretches, busy = measured(children, settle=settle, seconds=seconds)
        for child in children:
            child.ask("stop")
            child.close()
        rates = {
            "pairs/s": sum(stretch.pairs_per_s for stretch in stretches),
            "tokens/s": sum(stretch.tokens_per_s for stretch in stretches),
        }
        found[name] = rates | stretches[0].per_call | {"machine busy": busy}
        say(name, found[name])
    return found


def engine(work: Path, *, rounds: int, requests: int) -> dict[str, Any]:
    """One replica with all cores, and the bare engine with as many threads, in turns."""
    teacher = real_teacher(work / "minilm", max_length=128)
    cpus = available_cpus()
    same = {name: getattr(teacher, name) for name in ("model_dir", "contract", "tokens_per_batch")}
    scores = {name: work / f"{name}.npy" for name in ("pool", "bare")}
    times: dict[str, list[float]] = {name: [] for name in scores}
    at_work: list[float] = []
    with running_cluster(num_cpus=cpus, folder=work / "engine-cluster") as cluster:
        cluster.deploy([teacher])
        drivers = Drivers(cluster, Texts.of(work / "minilm"), work)
        # So few tokens that 256 pairs are one call: both sides then compute the same batches.
        path = drivers.requests("engine", count=requests, lists=8, per_list=32, longest=108)
        more = {"requests": str(path), "scores": str(scores["bare"]), "num_cpus": cpus}
        with (
            drivers.start(teacher, path, job="engine", sleeping=False, scores=str(scores["pool"])) as pool,
            Child("bare_engine", same | more, cluster.env) as bare,
        ):
            bare.ask("ready")
            sides = [("pool", pool), ("bare", bare)]
            for number in range(rounds + 1):  # the first one warms up
                for name, child in sides:
                    answer = child.ask("once")
                    times[name].append(answer["seconds"])
                    at_work += [answer["engine_s"] / answer["seconds"]] if name == "pool" else []
                print(f"  round {number}: " + ", ".join(f"{n} {t[-1]:.2f} s" for n, t in times.items()), flush=True)
                sides.reverse()
    apart = float(np.abs(np.load(scores["pool"]) - np.load(scores["bare"])).max())
    if not apart <= 1e-5:
        raise SystemExit(f"the pool's logits differ from the bare engine's by {apart}: these are not the same scores")
    pairs = requests * 256
    return {
        "backend": f"{teacher.contract['backend']} {teacher.contract['dtype']}",
        "pairs a turn": pairs,
        "pool, pairs/s": pairs / statistics.median(times["pool"][1:]),
        "bare engine, pairs/s": pairs / statistics.median(times["bare"][1:]),
        "bare over pool, seconds of each round": [b / p for p, b in zip(times["pool"], times["bare"], strict=True)][1:],
        "share of the pool's time that its engine was at work": statistics.median(at_work[1:]),
        "largest difference of a logit": apart,
    }


def say(name: str, found: dict[str, float]) -> None:
    """One line."""
    print(f"  {name}: " + ", ".join(f"{key} {value:.4g}" for key, value in found.items()), flush=True)


def _own_memory(pid: int) -> float:
    """MiB that no other process shares with it."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def simulate(options: argparse.Namespace, work: Path, figures: dict[str, Any], ratios: dict[str, float]) -> None:
    """The parts that need the cluster of booked CPUs."""
    seconds, settle = (20.0, 8.0) if options.quick else (60.0, 15.0)
    with running_cluster(num_cpus=MOST_REPLICAS, folder=work / "cluster") as cluster:
        drivers = Drivers(cluster, Texts.of(minilm_encoder()), work)
        if "driver" in options.only:
            print("SIMULATION: what a driver moves when replicas answer at once", flush=True)
            found = driver_limit(drivers, seconds=seconds / 2, settle=settle / 2)
            figures["SIMULATION: driver, replicas that answer at once"] = found
            figures["driver_limit_pairs_per_s"] = {name: case["pairs/s"] for name, case in found.items()}
            one, two = (found[f"lengths as they come{more}"]["pairs/s"] for more in ("", ", 2 drivers"))
            ratios["two_drivers_vs_one"] = two / one
        if "fairness" in options.only:
            print("SIMULATION: two jobs share a pool", flush=True)
            teacher = simulated(drivers, "fairness", FEW_REPLICAS, tokens_per_second=TOKENS_PER_SECOND)
            figures["SIMULATION: fairness"], ratios["fairness_min_over_max"] = fair_shares(
                drivers, teacher, seconds=2 * seconds, settle=settle, sleeping=True
            )
        if "scaling" in options.only:
            print(f"SIMULATION: replicas that sleep as if they scored {TOKENS_PER_SECOND:.0f} tokens/s", flush=True)
            figures["SIMULATION: scaling"] = found = scaling(drivers, options.replicas, seconds=seconds, settle=settle)
            ratios[f"linear_at_{options.replicas[-1]}"] = found[str(options.replicas[-1])]["of linear"]


def main() -> None:
    """Measure the parts, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer replica counts, short stretches")
    parser.add_argument("--json", type=Path, help="write device, figures and ratios here")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="these parts alone")
    parser.add_argument("--replicas", nargs="+", type=int, help="counts of the scaling part, rising, 64 at most")
    options = parser.parse_args()
    options.replicas = options.replicas or ([1, 8, 64] if options.quick else [1, 2, 4, 8, 16, 32, 64])
    quiet_loading()
    figures: dict[str, Any] = {
        "SIMULATION": f"all but 'pool and bare engine': replicas sleep, {TOKENS_PER_SECOND:.0f} tokens/s each",
        "cores": available_cpus(),
        "load average at the start": os.getloadavg()[0],
    }
    ratios: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        if "engine" in options.only:
            print("one replica and the bare engine, both real", flush=True)
            rounds, requests = (2, 3) if options.quick else (7, 6)
            figures["pool and bare engine"] = found = engine(work, rounds=rounds, requests=requests)
            ratios["pool_vs_bare_engine"] = statistics.median(found["bare over pool, seconds of each round"])
        if set(options.only) - {"engine"}:
            simulate(options, work, figures, ratios)
    report = {
        "device": device_name(torch.device("cpu")),
        "figures": rounded(figures),
        "ratios": {name: round(value, 3) for name, value in ratios.items()},
    }
    print(json.dumps(report, indent=1))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
