"""One trainer in a process of its own: it loads the model, and trains for some steps each time it is told to.

A process each, so that peak memory is its own, and so that threads and allocators of one neither help nor hurt the
other. Takes turns over its standard input: "go" trains and answers with the turn's figures as JSON, on a line that
begins with a mark; the end of the input ends it.

    python benchmarks/students/side.py '{"system": "ours", "model": ..., "loss": "margin_mse", ...}'
"""

import json
import sys
from pathlib import Path

import torch

MARK = "\x1e"

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # peers and students are packages beside each other
    from peers.st_trainer import sentence_transformers
    from students.meter import Meter
    from students.ours import ours

    from pipelines.devices import use_threads
    from pipelines.pretrained import quiet_loading

    settings = json.loads(sys.argv[1])
    device = torch.device(settings["device"])
    use_threads(settings["threads"])
    quiet_loading()
    meter = Meter(settings, device)
    turn = {"ours": ours, "sentence_transformers": sentence_transformers}[settings["system"]](settings, meter, device)
    print(MARK + json.dumps("ready"), flush=True)
    for _ in sys.stdin:
        meter.begin()
        turn()
        print(MARK + json.dumps(meter.figures()), flush=True)
