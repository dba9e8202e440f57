"""TeacherEngine: pairs in, raw fp32 logits out, in order, as fast as the device goes.

Enters: texts, or token ids from a cache; text is never stripped or changed. Leaves: one logit per pair. Which pairs
share a batch is decided by the call alone, so the same call gives the same bits.
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from pipelines.devices import device_name
from pipelines.errors import ContractError, ModelError
from pipelines.model_files import weights_hash
from pipelines.packing import pack_by_tokens
from pipelines.teacher.backends.choice import load_backend
from pipelines.teacher.backends.protocol import Backend, Logits
from pipelines.teacher.batch import PairBatch
from pipelines.teacher.calibration import Calibration, calibrate, kept_calibration, workload
from pipelines.teacher.contract import ScoreContract
from pipelines.teacher.memory import WithinMemory
from pipelines.teacher.pairs import KeptTokens, PairEncoder
from pipelines.teacher.stages import Stages
from pipelines.tokens import TokenPairs

__all__ = ["CALIBRATION_SECONDS", "ScoredPairs", "TeacherEngine", "load_engine"]

CALIBRATION_SECONDS = 2.0
"""What a teacher without a given `tokens_per_batch` spends on finding one, once per contract and device."""
_BATCHES_PER_WORKER = 4
_SMALLEST_BUDGET = 512

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ScoredPairs:
    """The logits of one call and what they took."""

    logits: Logits
    """Raw fp32, one per pair; NaN or infinite where the teacher gave that."""
    num_tokens: int
    num_slots: int
    """Tokens of the rectangles that hold the batches; a backend that packs does not compute the difference."""
    num_batches: int
    seconds: float


class TeacherEngine:
    """Scores pairs under one contract. Safe to call from several threads, whose batches then follow each other."""

    def __init__(
        self, *, backend: Backend, encoder: PairEncoder, contract: ScoreContract, tokens_per_batch: int
    ) -> None:
        self.contract = contract
        self.encoder = encoder
        self.backend = backend
        self._tokens_per_batch = tokens_per_batch
        self._memory = WithinMemory(backend)
        self._stages = Stages(self._assemble, self._memory.start, workers=backend.workers)

    @property
    def tokens_per_batch(self) -> int:
        """The budget in padded tokens; lower than asked for once memory ran out."""
        return min(self._tokens_per_batch, self._memory.limit or self._tokens_per_batch)

    def score(self, queries: Sequence[str], passages: Sequence[str]) -> Logits:
        """Raw logits [n] of `queries[i]` with `passages[i]`; higher is more relevant. Errors as `score_pairs`."""
        return self.score_pairs(self.encoder.tokenize(queries, passages))

    def score_pairs(self, pairs: TokenPairs) -> Logits:
        """Raw logits [n] of tokenised pairs.

        Raises:
            ContractError: another tokenizer made the ids.
            DataError: a query leaves no room for a passage within `max_length` tokens.
            ModelError: a logit is NaN or infinite.
        """
        logits = self.measure_pairs(pairs).logits
        if (bad := np.flatnonzero(~np.isfinite(logits))).size:
            query = self.encoder.tokenizer.decode(pairs.queries[int(pairs.query[bad[0]])].tolist())
            raise ModelError(f"teacher logit {logits[bad[0]]} for query {query!r}: weights or dtype are broken")
        return logits

    def measure_pairs(self, pairs: TokenPairs, *, before_batch: Callable[[], None] = lambda: None) -> ScoredPairs:
        """As `score_pairs`, but logits that are not finite are left to the caller, and with what the call took.

        Args:
            pairs: to score.
            before_batch: called before each batch is begun; may wait, to let another call's batches pass.
        """
        started = time.perf_counter()
        kept = self.encoder.cut(pairs)
        logits = np.empty(len(pairs), dtype=np.float32)
        if not len(pairs):
            return ScoredPairs(logits, 0, 0, 0, 0.0)
        batches = pack_by_tokens(kept.total, self._budget(kept.total))

        def parts() -> Iterator[tuple[TokenPairs, KeptTokens, Rows]]:
            for rows in batches:
                before_batch()
                yield pairs, kept, rows

        for rows, found in zip(batches, self._stages.run(parts()), strict=True):
            logits[rows] = found
        return ScoredPairs(
            logits,
            num_tokens=int(kept.total.sum()),
            num_slots=sum(len(rows) * int(kept.total[rows].max()) for rows in batches),
            num_batches=len(batches),
            seconds=time.perf_counter() - started,
        )

    def close(self) -> None:
        """End the engine's threads."""
        self._stages.close()

    def _assemble(self, part: tuple[TokenPairs, KeptTokens, Rows]) -> PairBatch:
        return self.encoder.assemble(*part)

    def _budget(self, lengths: npt.NDArray[np.int64]) -> int:
        """Tokens per batch for one call: several batches for every worker, where there are several workers."""
        if self.backend.workers == 1:
            return self._tokens_per_batch
        share = int(lengths.sum()) // (_BATCHES_PER_WORKER * self.backend.workers)
        return min(self._tokens_per_batch, max(share, _SMALLEST_BUDGET))


def load_engine(
    folder: Path,
    contract: ScoreContract,
    *,
    device: torch.device,
    threads: int | None = None,
    tokens_per_batch: int | None = None,
    calibrations: Path | None = None,
) -> TeacherEngine:
    """Load the teacher in `folder` onto `device` and hold it to its contract.

    Args:
        folder: a checked model folder.
        contract: what the scores will be.
        device: where to compute.
        threads: CPU cores to compute with; None takes those of torch.
        tokens_per_batch: padded tokens of a batch; None finds a good number by a short calibration.
        calibrations: folder in which the result of a calibration is kept for the next engine of such a teacher.

    Raises:
        ContractError: the folder's weights are not those that the contract names.
        ModelError: the folder is no usable cross-encoder, or its backend does not run here.
    """
    weights = weights_hash(folder)
    if weights != contract.weights_hash:
        raise ContractError(
            f"teacher folder {folder.name!r} has weights {weights[:12]}, contract {contract.weights_hash[:12]}"
        )
    threads = threads or torch.get_num_threads()
    backend, encoder = load_backend(folder, contract, device=device, threads=threads)
    if tokens_per_batch is None:
        work = workload(folder, contract, device_type=device.type)
        found = _calibrated(backend, encoder, contract, work, device, threads, calibrations)
        tokens_per_batch = found.tokens_per_batch
    return TeacherEngine(backend=backend, encoder=encoder, contract=contract, tokens_per_batch=tokens_per_batch)


def _calibrated(
    backend: Backend,
    encoder: PairEncoder,
    contract: ScoreContract,
    work: str,
    device: torch.device,
    threads: int,
    folder: Path | None,
) -> Calibration:
    name = device_name(device)

    def measure() -> Calibration:
        return calibrate(
            backend,
            encoder.layout,
            device=name,
            work=work,
            max_length=contract.max_length,
            seconds=CALIBRATION_SECONDS,
        )

    if folder is None:
        return measure()
    machine = "".join(letter if letter.isalnum() else "-" for letter in name)
    shape = hashlib.sha256(work.encode()).hexdigest()[:16]  # a ranker's next weights are as fast as its last ones
    return kept_calibration(folder / f"{shape}-{machine}-{threads}.json", measure)
