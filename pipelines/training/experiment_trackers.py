"""W&B and MLflow as loggers that keep everything on this machine unless its environment says otherwise.

Enters: steps and numbers. Leaves: an offline W&B run below the folder (`wandb sync` sends it), rows in an SQLite store
beside it (`mlflow ui --backend-store-uri` shows them), or points in the servers that the environment's `WANDB_*` and
`MLFLOW_TRACKING_URI` name. Both libraries report usage and errors to their makers by default; here they do not, unless
the environment asks.

Which run it is, and up to which step it was told, is in a file of the folder, written before the point: an attempt that
is killed in between loses that point, and never shows it twice.
"""

import json
import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.whole_files import write_json

if TYPE_CHECKING:
    import wandb
    from mlflow.tracking import MlflowClient

__all__ = ["MLflowLogger", "WandbLogger"]

_PROJECT = "dualdistill"
_LONGEST_PARAMETER = 500
_PARAMETERS_PER_CALL = 100


class WandbLogger:
    """One W&B run, resumed by its id. Offline, unless WANDB_MODE says otherwise or WANDB_API_KEY is set.

    Args:
        folder: where the run's id is kept, and W&B's own files.
        run_name: shown by W&B; the project is WANDB_PROJECT, or `dualdistill`.
        config: plain JSON.
    """

    def __init__(self, folder: Path, run_name: str, config: Mapping[str, Any]) -> None:
        self._folder = folder
        self._name = run_name
        self._config = dict(config)
        self._memory = _RunMemory(folder / "wandb.json")
        self._run: wandb.Run | None = None

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Hand the points to W&B's own process, unless the run already has this step."""
        if step > self._memory.step:
            if self._run is None:
                self._run = self._open()
            self._memory.reach(step)
            self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Wait until W&B has everything, a minute at most; what is not sent then, its files still have."""
        if self._run is not None:
            self._run.finish()

    def _open(self) -> "wandb.Run":
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        mode = os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline")
        resumed = self._memory.run_id is not None
        run_id = self._memory.run_id or uuid.uuid4().hex
        self._memory.begin(run_id)
        return wandb.init(
            project=os.environ.get("WANDB_PROJECT") or _PROJECT,
            id=run_id,
            name=self._name,
            dir=self._folder,
            config=self._config,
            mode=mode,  # type: ignore[arg-type] # what the user wrote; wandb says what it may be
            resume="allow" if resumed and mode == "online" else None,
            reinit="create_new",  # a process may train several runs
            settings=wandb.Settings(
                console="off", silent=True, disable_git=True, disable_code=True, init_timeout=60, finish_timeout=60
            ),
        )


class MLflowLogger:
    """One MLflow run, resumed by its id. In `mlflow.db` of the folder, unless MLFLOW_TRACKING_URI names another store.

    Args:
        folder: where the run's id is kept.
        run_name: shown by MLflow; the experiment is MLFLOW_EXPERIMENT_NAME, or `dualdistill`.
        config: plain JSON; becomes parameters with dotted names, each cut at 500 characters.
    """

    def __init__(self, folder: Path, run_name: str, config: Mapping[str, Any]) -> None:
        self._folder = folder
        self._name = run_name
        self._config = dict(config)
        self._memory = _RunMemory(folder / "mlflow.json")
        self._client: MlflowClient | None = None
        self._uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(folder / 'mlflow.db').resolve()}"

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write the points, unless the run already has this step; they are in the store when it returns."""
        if step > self._memory.step:
            client, run_id = self._opened()
            self._memory.reach(step)
            from mlflow.entities import Metric

            now = int(time.time() * 1000)
            client.log_batch(run_id, metrics=[Metric(name, value, now, step) for name, value in values.items()])

    def close(self) -> None:
        """Mark the run as finished; resuming makes it running again."""
        if self._client is not None and self._memory.run_id is not None:
            self._client.set_terminated(self._memory.run_id)

    def _opened(self) -> "tuple[MlflowClient, str]":
        if self._client is not None and self._memory.run_id is not None:
            return self._client, self._memory.run_id
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        # Its own 7 tries of 2 minutes each would hold up the training of a student whose tracking server is away.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        self._folder.mkdir(parents=True, exist_ok=True)
        client = MlflowClient(tracking_uri=self._uri)
        run_id = self._memory.run_id
        if run_id is None:
            run_id = str(client.create_run(self._experiment(client), run_name=self._name).info.run_id)
            self._memory.begin(run_id)
        client.update_run(run_id, status="RUNNING")
        parameters = [Param(name, value) for name, value in _flat(self._config)]
        for start in range(0, len(parameters), _PARAMETERS_PER_CALL):  # a second time, they change nothing
            client.log_batch(run_id, params=parameters[start : start + _PARAMETERS_PER_CALL])
        self._client = client
        return client, run_id

    def _experiment(self, client: "MlflowClient") -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or _PROJECT
        known = client.get_experiment_by_name(name)
        if known is not None:
            return str(known.experiment_id)
        local = self._uri.startswith("sqlite:")
        artifacts = (self._folder / "mlflow-artifacts").resolve().as_uri() if local else None
        return str(client.create_experiment(name, artifact_location=artifacts))


class _RunMemory:
    """Which run a tracker knows us by, and the last step it was told; in a small file, replaced as a whole."""

    def __init__(self, path: Path) -> None:
        self._path = path
        known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        self.run_id: str | None = known.get("run_id")
        self.step: int = known.get("step", 0)

    def begin(self, run_id: str) -> None:
        self.run_id = run_id
        self._write()

    def reach(self, step: int) -> None:
        self.step = step
        self._write()

    def _write(self) -> None:
        write_json(self._path, {"run_id": self.run_id, "step": self.step})


def _flat(config: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """`{"a": {"b": [1]}}` as `a.b.0` and `1`."""
    if isinstance(config, Mapping):
        items = [(str(key), value) for key, value in config.items()]
    elif isinstance(config, Sequence) and not isinstance(config, str):
        items = [(str(place), value) for place, value in enumerate(config)]
    else:
        yield path, str(config)[:_LONGEST_PARAMETER]
        return
    for key, value in items:
        yield from _flat(value, f"{path}.{key}" if path else key)
