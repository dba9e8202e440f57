"""A `TeacherEngine` in a process of its own, without a pool: what a pool is measured against.

Takes the word `once`: scores every request, one after the other, and answers with the seconds it took.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pools.child import serve_words
from pools.pairs import load_requests

from pipelines.devices import use_threads
from pipelines.pretrained import quiet_loading
from pipelines.teacher.contract import ScoreContract
from pipelines.teacher.engine import load_engine

_NICENESS_OF_REPLICAS = 15
"""Ray's default for the processes it starts: a busy neighbour must slow both alike."""


def main() -> None:
    """Load, say so, do what one is told."""
    settings: dict[str, Any] = json.loads(sys.argv[1])
    os.nice(_NICENESS_OF_REPLICAS)
    quiet_loading()
    engine = load_engine(
        Path(settings["model_dir"]),
        ScoreContract.from_dict(settings["contract"]),
        device=torch.device("cpu"),
        threads=use_threads(settings["num_cpus"]),
        tokens_per_batch=settings["tokens_per_batch"],
    )
    requests = load_requests(Path(settings["requests"]))

    def once() -> dict[str, Any]:
        started = time.perf_counter()
        logits = [engine.score_pairs(pairs) for pairs in requests]
        seconds = time.perf_counter() - started
        np.save(settings["scores"], np.concatenate(logits))
        return {"seconds": seconds}

    serve_words({"ready": lambda: True, "once": once})
    engine.close()


if __name__ == "__main__":
    main()
