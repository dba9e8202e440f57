"""The command line: every command in one place, each a few lines over a module that does the work."""

import contextlib
import signal
import threading
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from pipelines.errors import PipelineError
from pipelines.spec import load_spec
from services.cli.client import GatewayClient, RequestRefused
from services.cli.lists_app import lists
from services.cli.output import LOCAL_URL, Url, console, refuse_bad_input
from services.cli.overrides import parse_overrides
from services.cli.results import print_result
from services.cli.teachers import rerank, teachers
from services.errors import ServiceError
from services.settings import GATEWAY_PORT, RAY_DASHBOARD_PORT

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)
jobs = typer.Typer(no_args_is_help=True, help="Look at jobs and cancel them.")
app.add_typer(jobs, name="jobs")
app.add_typer(teachers, name="teachers")
app.add_typer(lists, name="lists")
app.command()(rerank)

JobFile = Annotated[Path, typer.Argument(metavar="JOB.yaml", help="The job file.")]
JobId = Annotated[str, typer.Argument(metavar="JOB_ID", help="The job's id, as `submit` printed it.")]
Root = Annotated[Path, typer.Option(help="Where everything is written.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Override a field, e.g. dataset.path=FOLDER."),
]
_LOCAL_ROOT = Path(".dualdistill/local")


@app.callback()
def main() -> None:
    """Distil an accurate, slow cross-encoder into a fast dual encoder."""


@app.command()
def up(
    root: Root = _LOCAL_ROOT,
    data_root: Annotated[
        list[Path] | None, typer.Option(help="Folder that jobs may read data and models from; may be repeated.")
    ] = None,
    port: Annotated[int, typer.Option(help="Gateway port; another one is taken if it is busy.")] = GATEWAY_PORT,
    dashboard_port: Annotated[int, typer.Option(help="Ray dashboard port, likewise.")] = RAY_DASHBOARD_PORT,
    submit: Annotated[
        Path | None, typer.Option(help="Submit this job, follow it to its end, show its result, and stop.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Start the local stack (Ray, gateway, SQLite) on 127.0.0.1 and stop it again on Ctrl-C."""
    from services.cli.stack import local_stack

    refuse_bad_input(lambda: load_spec(submit, parse_overrides(overrides)) if submit else None)
    _sigterm_is_an_interrupt()
    data_roots = tuple(folder.resolve() for folder in data_root or [Path()])
    try:
        console.print("starting Ray and the gateway ...")
        with local_stack(root=root.resolve(), data_roots=data_roots, port=port, dashboard_port=dashboard_port) as stack:
            console.print(f"gateway        {stack.gateway_url}  (its API: {stack.gateway_url}/openapi.json)")
            console.print(f"Ray dashboard  {stack.dashboard_url}  (asks for the token in {stack.token_file})")
            if submit is None:
                console.print("Ctrl-C stops both")
                threading.Event().wait()
                return
            with GatewayClient(stack.gateway_url) as client:
                succeeded = _run_to_its_end(client, submit, overrides, stack.root)
    except ServiceError as error:
        console.print(f"[red]failed[/]: {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        console.print("\nstopped Ray and the gateway")
        raise typer.Exit(130) from None
    console.print("stopped Ray and the gateway")
    if not succeeded:
        raise typer.Exit(1)


@app.command()
def submit(job: JobFile, url: Url = LOCAL_URL, overrides: Overrides = None, watch: bool = False) -> None:
    """Submit a job to a running gateway; with --watch, follow it to its end."""
    with GatewayClient(url) as client:
        if watch:
            if not refuse_bad_input(lambda: _watch(client, _submit(client, job, overrides))):
                raise typer.Exit(1)
        else:
            created = refuse_bad_input(lambda: client.submit(_spec(job, overrides)))
            console.print(created["id"], highlight=False)


@app.command()
def run(
    job: JobFile,
    root: Root = _LOCAL_ROOT,
    data_root: Annotated[Path, typer.Option(help="What dataset.path and model folders are relative to.")] = Path(),
    lists_url: Annotated[
        str | None, typer.Option(envvar="DUALDISTILL_LISTS_URL", help="Where ranked lists go, if not below the root.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Run a job in this process: no service, no Ray; for notebooks, debugging and small data."""
    from services.cli.run import run_in_process

    spec = refuse_bad_input(lambda: load_spec(job, parse_overrides(overrides)))
    try:
        artifacts, result = run_in_process(
            spec, root=root.resolve(), data_root=data_root.resolve(), lists_url=lists_url, console=console
        )
    except PipelineError as error:
        console.print(f"[red]failed[/] ({error.reason}): {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
    _show(result, artifacts)


@app.command()
def estimate(
    job: JobFile,
    data_root: Annotated[Path, typer.Option(help="What dataset.path and model folders are relative to.")] = Path(),
    within: Annotated[float | None, typer.Option(min=0.001, help="Hours: say how many replicas that takes.")] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(help="A file of calibrations/ below another machine's root, measured on what will score."),
    ] = None,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Predict a job's pairs, tokens and hours of scoring: mines a sample and runs the teacher for 10 seconds."""
    from services.cli.estimate import estimate as estimated
    from services.cli.estimate import print_estimate

    spec = refuse_bad_input(lambda: load_spec(job, parse_overrides(overrides)))
    try:
        found = estimated(spec, data_root=data_root.resolve(), calibration=calibration)
    except PipelineError as error:
        console.print(f"[red]failed[/] ({error.reason}): {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
    if as_json:
        console.print_json(data=found.to_dict())
    else:
        print_estimate(found, console, within=within)


@jobs.command("list")
def list_jobs(url: Url = LOCAL_URL, limit: int = 20) -> None:
    """The newest jobs."""
    with GatewayClient(url) as client:
        found = refuse_bad_input(lambda: client.jobs(limit))
    table = Table("id", "name", "status", "phase")
    for job in found:
        table.add_row(job["id"], job["name"], job["status"], job["phase"] or "")
    console.print(table)


@jobs.command("show")
def show_job(job_id: JobId, url: Url = LOCAL_URL) -> None:
    """One job as JSON."""
    with GatewayClient(url) as client:
        console.print_json(data=refuse_bad_input(lambda: client.job(job_id)))


@jobs.command("watch")
def watch_job(job_id: JobId, url: Url = LOCAL_URL) -> None:
    """Follow a job to its end."""
    with GatewayClient(url) as client:
        if not refuse_bad_input(lambda: _watch(client, job_id)):
            raise typer.Exit(1)


@jobs.command("cancel")
def cancel_job(job_id: JobId, url: Url = LOCAL_URL) -> None:
    """Ask for a job's end."""
    with GatewayClient(url) as client:
        console.print(refuse_bad_input(lambda: client.cancel(job_id))["status"])


def _spec(job: Path, overrides: list[str] | None) -> dict[str, Any]:
    return load_spec(job, parse_overrides(overrides)).model_dump(mode="json")


def _submit(client: GatewayClient, job: Path, overrides: list[str] | None) -> str:
    job_id = str(client.submit(_spec(job, overrides))["id"])
    console.print(f"submitted      {job_id}", highlight=False)
    return job_id


def _run_to_its_end(client: GatewayClient, job: Path, overrides: list[str] | None, root: Path) -> bool:
    """Submit, follow, show. An interrupt cancels the job: the next `up` must not find it and go on with it.

    What it scored and trained stays, and is reused when it is submitted again.
    """
    job_id = _submit(client, job, overrides)
    try:
        return _watch(client, job_id, artifacts_below=root)
    except KeyboardInterrupt:
        with contextlib.suppress(RequestRefused):  # it ended in the same moment
            client.cancel(job_id)
            console.print(f"\ncancelled {job_id}; what it scored so far will be reused", highlight=False)
        raise


def _watch(client: GatewayClient, job_id: str, *, artifacts_below: Path | None = None) -> bool:
    from services.cli.watch import watch

    job = watch(client, job_id, console)
    if job["status"] != "succeeded":
        error = job["error"] or {"message": job["status"]}
        message = escape(error["message"])
        console.print(f"[red]{job['status']}[/] ({job['reason']}): {message}", highlight=False, soft_wrap=True)
        return False
    _show(job["result"], artifacts_below / "jobs" / job_id / "artifacts" if artifacts_below else None)
    return True


def _show(result: dict[str, Any], artifacts: Path | None) -> None:
    print_result(result, console)
    if artifacts:
        for line in (
            f"student  {artifacts / 'student'}  (SentenceTransformer loads it)",
            f"report   {artifacts / 'report.html'}",
        ):
            console.print(line, highlight=False, markup=False, soft_wrap=True)


def _sigterm_is_an_interrupt() -> None:
    """On SIGTERM and a closed terminal, clean up as on Ctrl-C; what nohup ignores stays ignored."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    for name in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(name) is not signal.SIG_IGN:
            signal.signal(name, interrupt)
