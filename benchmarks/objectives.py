"""What every registered objective costs, and how that compares with sentence-transformers in the same run.

One step of each objective, forward and backward, on a batch of 256 queries with 64 candidates each, 16,384 distinct
documents and 384 dimensions, on 2 threads: median time and peak memory. Inputs are made by the names of the tensors
that an objective asks for, so a new one needs no line here.

Where sentence-transformers has the loss too, both run on the same numbers, in turn, repeat by repeat, and must agree in
value and gradient before anything is timed: a ratio never compares different work. Its cross-encoder losses take a
model and texts; they get a stub whose forward hands over the given scores, and the time in which they pair the texts is
measured in every repeat and taken off theirs. Its dual-encoder losses get the embeddings (or, where only scores
matter, a similarity function that hands over the given scores). So what is compared is the loss alone.

Peak memory is what torch's allocator holds at the worst moment of one step beyond the inputs, gradients of the inputs
included: on CPU summed up from the profiler's memory events (scratch space of maths libraries is not in it), on CUDA
`max_memory_allocated`.

    python benchmarks/objectives.py --quick --json out.json      # fewer repeats, and one where a step takes long
"""

import argparse
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from peers.sentence_transformers_losses import Contest, Side, contests
from torch import Tensor
from torch.nn import functional

from pipelines.devices import device_name
from pipelines.objectives.registry import OBJECTIVES, TENSORS

QUERIES, CANDIDATES, DIMENSIONS = 256, 64, 384
DOCUMENTS = QUERIES * CANDIDATES
PEER = "sentence_transformers"


class Batch(Mapping[str, Tensor]):
    """A random but valid value for every tensor name of the vocabulary, made when first asked for.

    Every query's own list is its 64 documents, the first being its positive; the teacher scored exactly these pairs.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._made: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._made:
            if name not in MAKERS:
                raise SystemExit(f"benchmarks/objectives.py knows no value for the tensor {name!r}: {TENSORS[name]}")
            generator = torch.Generator().manual_seed(sorted(TENSORS).index(name))
            self._made[name] = MAKERS[name](generator).to(self.device)
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(TENSORS)

    def __len__(self) -> int:
        return len(TENSORS)

    def leaf(self, name: str) -> Tensor:
        """A copy to differentiate by; flags and indices as they are."""
        value = self[name]
        return value.clone().requires_grad_() if value.is_floating_point() else value


def _similarities(generator: torch.Generator, width: int) -> Tensor:
    return torch.rand(QUERIES, width, generator=generator) * 0.8


def _logits(generator: torch.Generator, width: int) -> Tensor:
    return 4 * torch.randn(QUERIES, width, generator=generator)


def _embeddings(generator: torch.Generator, rows: int) -> Tensor:
    return functional.normalize(torch.randn(rows, DIMENSIONS, generator=generator), dim=1)


OWN_LIST = torch.arange(DOCUMENTS) // CANDIDATES == torch.arange(QUERIES).unsqueeze(1)
POSITIVES = torch.arange(QUERIES) * CANDIDATES
MAKERS: dict[str, Callable[[torch.Generator], Tensor]] = {
    "student_scores": lambda generator: _similarities(generator, CANDIDATES),
    "teacher_scores": lambda generator: _logits(generator, CANDIDATES),
    "mask": lambda _: torch.ones(QUERIES, CANDIDATES, dtype=torch.bool),
    "positive": lambda _: torch.zeros(QUERIES, dtype=torch.int64),
    "positives": lambda _: (torch.arange(CANDIDATES) == 0).repeat(QUERIES, 1),
    "columns": lambda _: torch.arange(DOCUMENTS).view(QUERIES, CANDIDATES),
    "query_embeddings": lambda generator: _embeddings(generator, QUERIES),
    "document_embeddings": lambda generator: _embeddings(generator, DOCUMENTS),
    "positive_document": lambda _: POSITIVES,
    "relevant": lambda _: torch.arange(DOCUMENTS) == POSITIVES.unsqueeze(1),
    "same_query": lambda _: torch.eye(QUERIES, dtype=torch.bool),
    "batch_scores": lambda generator: _similarities(generator, DOCUMENTS),
    "batch_teacher_scores": lambda generator: _logits(generator, DOCUMENTS) * OWN_LIST,
    "scored": lambda _: OWN_LIST,
    "previous_query_embeddings": lambda generator: _embeddings(generator, QUERIES),
    "previous_document_embeddings": lambda generator: _embeddings(generator, DOCUMENTS),
}


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repeats, one where a step takes seconds")
    parser.add_argument("--json", type=Path, help="write device, figures and ratios here")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=2, help="of torch; 1 where other work shares the machine")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these objectives alone")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", category=FutureWarning)
    device = torch.device(options.device)
    batch = Batch(device)
    names = [name for name in OBJECTIVES if not options.only or name in options.only]
    figures: dict[str, float] = {"load average at the start": os.getloadavg()[0]}
    ratios: dict[str, float] = {}
    if figures["load average at the start"] > 0.5:
        print("this machine is busy with something else: threads wait for each other, times and ratios suffer")
    print(f"{_device_name(device)}; [{QUERIES} queries, {CANDIDATES} candidates, {DIMENSIONS} dimensions]\n")
    print(f"{'objective':34}{'ms':>10}{'peak MiB':>12}")
    for name in names:
        side = registered(name, batch)
        times = timed([side.step], device, quick=options.quick)[0]
        figures[f"{name} ms"] = statistics.median(times) * 1e3
        figures[f"{name} peak MiB"] = peak_memory(side, device) / 2**20
        print(f"{name:34}{figures[f'{name} ms']:10.2f}{figures[f'{name} peak MiB']:12.1f}", flush=True)

    print(f"\n{'the same loss in both':66}{'ours ms':>10}{'theirs ms':>10}{'ratio':>10}{'MiB':>9}{'theirs':>9}")
    for label, contest in contests(batch, names):
        compare(label, contest, device, figures, ratios, quick=options.quick)
    print("\nratio = their time / our time, the median of paired repeats; above 1 ours is faster")
    if options.json:
        report = {"device": _device_name(device), "figures": figures, "ratios": ratios}
        options.json.write_text(json.dumps(report, indent=1), encoding="utf-8")


def registered(name: str, batch: Batch) -> Side:
    """An objective as a job with its defaults would call it, with every tensor that it asks for."""
    info = OBJECTIVES[name]
    tensors = {tensor: batch.leaf(tensor) for tensor in info.tensors if tensor in TENSORS}
    leaves = [tensor for tensor in tensors.values() if tensor.requires_grad]
    return Side(lambda: info.function(**tensors), leaves)


def timed(steps: Sequence[Callable[[], object]], device: torch.device, *, quick: bool) -> list[list[float]]:
    """Seconds per repeat of each step, the steps in turn, their order reversed every time, after two uncounted runs.

    As many repeats as fit. Of a single slow step a quick measurement takes the first run; two that are compared are
    never taken cold.
    """
    budget, most = (0.7 * len(steps), 30) if quick else (8.0, 200)
    once = sum(_seconds(step, device) for step in steps)
    if quick and len(steps) == 1 and once > budget:
        return [[once]]
    once = sum(_seconds(step, device) for step in steps)
    repeats = min(max(int(budget / once), 1 if once > budget * 3 else 5), most)
    times: list[list[float]] = [[] for _ in steps]
    turn = list(zip(times, steps, strict=True))
    for _ in range(repeats):
        for found, step in turn:
            found.append(_seconds(step, device))
        turn.reverse()
    return times


def _seconds(step: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def peak_memory(side: Side, device: torch.device) -> int:
    """Bytes beyond the inputs at the worst moment of one step."""
    for leaf in side.leaves:
        leaf.grad = None
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        side.step()
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        side.step()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def compare(
    label: str,
    contest: Contest,
    device: torch.device,
    figures: dict[str, float],
    ratios: dict[str, float],
    *,
    quick: bool,
) -> None:
    """Hold both sides to the same value and gradient, then time them in turn.

    Raises:
        SystemExit: they do not compute the same.
    """
    ours, theirs = float(contest.ours.forward().detach()), float(contest.theirs.forward().detach())
    contest.ours.step()
    contest.theirs.step()
    gradients = zip(contest.ours.gradients(), contest.theirs.gradients(), strict=True)
    apart = max(float((mine - given).abs().max() / given.abs().max()) for mine, given in gradients)
    if not (abs(ours - theirs) <= 1e-4 * abs(theirs) and apart <= 1e-3):
        raise SystemExit(
            f"{label} and {contest.peer} differ: {ours} and {theirs}, gradients by {apart:.1e} of the largest entry; "
            "a ratio would compare different work"
        )
    our_times, gross, aside = timed([contest.ours.step, contest.theirs.step, contest.plumbing], device, quick=quick)
    their_times = [whole - part for whole, part in zip(gross, aside, strict=True)]
    ratio = statistics.median(theirs / ours for ours, theirs in zip(our_times, their_times, strict=True))
    row = {
        "ms": statistics.median(our_times) * 1e3,
        f"{PEER} ms": statistics.median(their_times) * 1e3,
        "peak MiB": peak_memory(contest.ours, device) / 2**20,
        f"{PEER} peak MiB": peak_memory(contest.theirs, device) / 2**20,
    }
    figures |= {f"{label} as {contest.peer} {unit}": value for unit, value in row.items()}
    ratios[f"{label}_vs_{PEER}"] = ratio
    name = f"{label} / {contest.peer}"
    print(
        f"{name:66}"
        + "".join(f"{value:10.2f}" for value in (row["ms"], row[f"{PEER} ms"], ratio))
        + "".join(f"{value:9.1f}" for value in (row["peak MiB"], row[f"{PEER} peak MiB"])),
        flush=True,
    )


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device_name(torch.device('cpu'))}, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads"


if __name__ == "__main__":
    main()
