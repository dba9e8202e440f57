"""What a job will ask of its teacher, before any of it is paid for: pairs, tokens, hours, replicas.

Enters: a spec, its data, a machine like those that will score. Leaves: an `Estimate`. Candidates are really mined, for
a sample of queries in a sample of documents; their pairs are really cut as the teacher will read them; and the teacher
is really run, for some seconds. What jobs before this one have scored already is not taken off.
"""

import dataclasses
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from pipelines.candidates.sample import CandidateSample, sample_candidates
from pipelines.corpus.dataset import Dataset
from pipelines.devices import available_cpus, cpu_threads, device_name, resolve_device
from pipelines.errors import ContractError, ModelError
from pipelines.job_teacher import teacher_contract
from pipelines.model_files import resolve_model, tokenizer_hash
from pipelines.pretrained import load_folder_tokenizer
from pipelines.queries import num_round_queries, training_queries
from pipelines.spec import DistillationSpec
from pipelines.teacher.backends.choice import load_backend
from pipelines.teacher.calibration import Calibration, calibrate, workload
from pipelines.teacher.contract import ScoreContract
from pipelines.teacher.layout import pair_layout
from pipelines.teacher.pairs import PairEncoder
from pipelines.training.ranker import new_ranker, save_ranker

__all__ = ["Estimate", "estimate_job"]

_QUANTILES = (0.1, 0.5, 0.9, 1.0)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Of the whole job; times are of scoring alone, on devices like the one that was calibrated."""

    queries: int
    """Training queries, each scored in every round."""
    test_queries: int
    pairs: int
    """To score; with several rounds, as many as if no later round found a document that an earlier one had."""
    tokens: int
    token_quantiles: dict[str, int]
    """Tokens of a pair, after cutting: at 10 %, 50 %, 90 % and 100 % of the pairs."""
    replicas: int
    gpus_per_replica: float
    seconds_of_one_replica: float
    contract: ScoreContract
    calibration: Calibration

    @property
    def hours(self) -> float:
        """With the spec's number of replicas."""
        return self.seconds_of_one_replica / self.replicas / 3600

    @property
    def pairs_per_second(self) -> float:
        """Of one replica."""
        return self.pairs / self.seconds_of_one_replica

    def replicas_within(self, hours: float) -> int:
        """The fewest replicas that are done in `hours`."""
        return max(1, math.ceil(self.seconds_of_one_replica / 3600 / hours))

    def to_dict(self) -> dict[str, object]:
        """Plain JSON."""
        return dataclasses.asdict(self) | {"hours": self.hours, "pairs_per_second": self.pairs_per_second}


def estimate_job(
    spec: DistillationSpec,
    dataset: Dataset,
    *,
    model_roots: Sequence[Path],
    seconds: float = 10.0,
    calibration: Calibration | None = None,
) -> Estimate:
    """Predict the teacher's work.

    Args:
        spec: the job.
        dataset: its data.
        model_roots: where model folders are looked for.
        seconds: how long to measure the teacher.
        calibration: what was measured elsewhere, on the kind of device that will score; None measures here.

    Raises:
        ContractError: the calibration is that of another kind of teacher.
        ModelError: a model cannot be used; or the replicas have GPUs, this machine has none, and no calibration is
            given.
        DataError: there is nothing to score, or a query leaves no room for a passage within the teacher's `max_length`.
    """
    if spec.teacher.gpus_per_replica and calibration is None and resolve_device().type != "cuda":
        raise ModelError(
            f"teacher.gpus_per_replica is {spec.teacher.gpus_per_replica:g}, and this machine has no GPU to measure: "
            "run the estimate on one that has, or give the calibration of such a machine"
        )
    queries = training_queries(spec, dataset)
    test_queries = dataset.labelled_queries(spec.dataset.test_split) if spec.dataset.test_split else []
    test_queries = test_queries[: spec.evaluation.max_queries]
    with tempfile.TemporaryDirectory(prefix="dualdistill-estimate-") as scratch:
        folder = _teacher_folder(spec, model_roots, Path(scratch))
        device_type = "cuda" if spec.teacher.gpus_per_replica else "cpu"
        contract = teacher_contract(
            spec.teacher,
            folder,
            model_id=spec.teacher.model.id,
            revision=spec.teacher.model.revision,
            device_type=device_type,
        )
        sample = sample_candidates(spec, dataset, queries, model_roots=model_roots)
        lengths = _lengths(sample, dataset, folder, contract)
        work = workload(folder, contract, device_type=device_type)
        if calibration is None:
            calibration = _measure(folder, contract, spec, work, seconds=seconds)
        elif calibration.workload != work:
            raise ContractError(f"the calibration is of {calibration.workload!r}, the job's teacher is {work!r}")
    reranked = len(test_queries) * min(spec.evaluation.rerank_depth, len(dataset.documents))
    if spec.rounds.mode == "adversarial":
        # Each version of the ranker scores everything anew, the test queries before the first and after the last.
        per_query = min(sample.pairs_per_query, spec.training.candidates_per_query)
        total = round(per_query * num_round_queries(spec, dataset) * spec.rounds.count + 2 * reranked)
    else:
        in_a_round = sample.pairs_per_query * len(queries)
        rounds_after = in_a_round * sample.only_dense * (spec.rounds.count - 1) if _mines_anew(spec) else 0.0
        total = round(in_a_round + rounds_after + reranked)
    return Estimate(
        queries=len(queries),
        test_queries=len(test_queries),
        pairs=total,
        tokens=round(total * float(lengths.mean())),
        token_quantiles={f"{at:.0%}": int(np.quantile(lengths, at)) for at in _QUANTILES},
        replicas=spec.teacher.replicas,
        gpus_per_replica=spec.teacher.gpus_per_replica,
        seconds_of_one_replica=total * calibration.seconds(lengths) / len(lengths),
        contract=contract,
        calibration=calibration,
    )


def _teacher_folder(spec: DistillationSpec, model_roots: Sequence[Path], scratch: Path) -> Path:
    """The teacher's folder; for one that is yet to be fine-tuned, the same model with a new head, as fast as it."""
    folder = resolve_model(spec.teacher.model.id, spec.teacher.model.revision, roots=model_roots)
    if spec.teacher.train is None:
        return folder
    model, encoder = new_ranker(
        folder,
        max_length=spec.teacher.max_length,
        truncation=spec.teacher.truncation,
        dropout=0.0,
        device=torch.device("cpu"),
    )
    save_ranker(model, encoder.tokenizer, scratch / "teacher")
    return scratch / "teacher"


def _lengths(sample: CandidateSample, dataset: Dataset, folder: Path, contract: ScoreContract) -> npt.NDArray[np.int64]:
    tokenizer = load_folder_tokenizer(folder)
    encoder = PairEncoder(
        tokenizer=tokenizer,
        tokenizer_hash=tokenizer_hash(folder),
        layout=pair_layout(tokenizer, contract.template),
        max_length=contract.max_length,
        truncation=contract.truncation,
    )
    queries = [dataset.query_text(query_id) for query_id, _ in sample.pairs]
    return encoder.cut(encoder.tokenize(queries, [dataset.passage(doc_id) for _, doc_id in sample.pairs])).total


def _measure(
    folder: Path, contract: ScoreContract, spec: DistillationSpec, work: str, *, seconds: float
) -> Calibration:
    """On the GPU; or on all CPUs at once, of which a replica then gets its share.

    A core computes slower beside busy ones, and beside a replica there are others, or the student in training.
    """
    teacher, cpus = spec.teacher, available_cpus()
    device = resolve_device() if teacher.gpus_per_replica else torch.device("cpu")
    backend, encoder = load_backend(folder, contract, device=device, threads=cpus)
    found = calibrate(
        backend,
        encoder.layout,
        device=device_name(device),
        work=work,
        max_length=contract.max_length,
        seconds=seconds,
        tokens_per_batch=teacher.tokens_per_batch,
    )
    if teacher.gpus_per_replica:
        share = min(1.0, teacher.gpus_per_replica)
    else:  # a replica has whole threads, but never more of a core than it books
        booked = teacher.cpus_per_replica or 1.0
        share = (booked if booked < 1 else cpu_threads(booked)) / cpus
    return dataclasses.replace(found, seconds_per_pair=tuple(second / share for second in found.seconds_per_pair))


def _mines_anew(spec: DistillationSpec) -> bool:
    """Whether later rounds may find other documents: BM25 and a fixed encoder find the same ones again."""
    return spec.candidates.dense is not None and spec.candidates.dense.encoder is None
