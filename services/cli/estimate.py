"""`dualdistill estimate`: what a job will cost its teacher, measured on this machine, printed or as JSON.

Enters: a spec and where its data are. Leaves: an `Estimate`, and its lines.
"""

from pathlib import Path

from rich.console import Console

from pipelines.corpus.dataset import load_dataset
from pipelines.devices import available_cpus, use_threads
from pipelines.estimate import Estimate, estimate_job
from pipelines.pretrained import quiet_loading
from pipelines.spec import DistillationSpec
from pipelines.teacher.calibration import read_calibration

__all__ = ["estimate", "print_estimate"]


def estimate(spec: DistillationSpec, *, data_root: Path, calibration: Path | None) -> Estimate:
    """The estimate of a job whose paths are relative to `data_root`; errors as `pipelines.estimate.estimate_job`."""
    quiet_loading()
    use_threads(available_cpus())
    return estimate_job(
        spec,
        load_dataset(spec.dataset, data_root / spec.dataset.path),
        model_roots=(data_root, Path.cwd()),
        calibration=read_calibration(calibration) if calibration else None,
    )


def print_estimate(found: Estimate, console: Console, *, within: float | None) -> None:
    """One fact a line; with `within` (hours), how many replicas and GPUs that takes."""
    contract = found.contract
    lengths = ", ".join(f"{tokens} at {at}" for at, tokens in found.token_quantiles.items())
    lines = {
        "teacher": f"{contract.model_id}, {contract.backend} {contract.dtype}, {contract.max_length} tokens",
        "queries": f"{found.queries:,} to train on, {found.test_queries:,} to test on",
        "pairs": f"{found.pairs:,}",
        "tokens": f"{found.tokens:,} (a pair has {lengths} of the pairs)",
        "one replica": f"{found.pairs_per_second:,.1f} pairs/s on {found.calibration.device}",
        _replicas(found, found.replicas): f"{found.hours:,.2f} hours",
    }
    if within is not None:
        lines[f"in {within:g} hours"] = _replicas(found, found.replicas_within(within))
    for name, fact in lines.items():
        console.print(f"{name:15} {fact}", highlight=False, markup=False, soft_wrap=True)


def _replicas(found: Estimate, count: int) -> str:
    gpus = f", {count * found.gpus_per_replica:g} GPUs" if found.gpus_per_replica else ""
    return f"{count:,} replica{'s' if count > 1 else ''}{gpus}"
