"""`dualdistill teachers ...` and `dualdistill rerank`: pools that stay, their sizes, and what they say to a query.

Enters: names, sizes, a job file or a model's id. Leaves: a table, JSON, or a name that stands alone for scripts.
"""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from pipelines.spec import SpecError, load_spec
from services.cli.client import GatewayClient
from services.cli.output import LOCAL_URL, Url, console, refuse_bad_input

__all__ = ["rerank", "teachers"]

teachers = typer.Typer(no_args_is_help=True, help="Look at teachers, keep them without a job, size their pools.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="The teacher's name, as `list` prints it.")]


@teachers.command("list")
def list_teachers(url: Url = LOCAL_URL) -> None:
    """All teachers, by name."""
    with GatewayClient(url) as client:
        found = refuse_bad_input(client.teachers)
    table = Table("name", "model", "status", "mode", "running / target", "backlog")
    for teacher in found:
        size = teacher["replicas"]
        running = "?" if size["running"] is None else size["running"]
        table.add_row(
            teacher["name"],
            teacher["model"],
            teacher["status"],
            teacher["mode"] + (f" {size['min']} to {size['max']}" if teacher["mode"] == "auto" else ""),
            f"{running} / {size['target']}",
            f"{teacher['backlog_tokens']:,} tokens" if teacher["backlog_tokens"] else "",
        )
    console.print(table)


@teachers.command("show")
def show_teacher(name: Name, url: Url = LOCAL_URL) -> None:
    """One teacher as JSON."""
    with GatewayClient(url) as client:
        console.print_json(data=refuse_bad_input(lambda: client.teacher(name)))


@teachers.command("add")
def add_teacher(
    job_file: Annotated[
        Path | None, typer.Argument(metavar="[JOB.yaml]", help="Take the teacher that this job file names.")
    ] = None,
    *,
    job: Annotated[str | None, typer.Option(metavar="JOB_ID", help="Keep the teacher that this job used.")] = None,
    model: Annotated[str | None, typer.Option(metavar="ID", help="A folder, package:NAME or hub id.")] = None,
    revision: Annotated[str | None, typer.Option(help="Of a hub id.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Tokens of a pair.")] = None,
    template: Annotated[str | None, typer.Option(help="As in a job file.")] = None,
    truncation: Annotated[str | None, typer.Option(help="As in a job file.")] = None,
    backend: Annotated[str | None, typer.Option(help="As in a job file.")] = None,
    dtype: Annotated[str | None, typer.Option(help="As in a job file.")] = None,
    tokens_per_batch: Annotated[int | None, typer.Option(help="As in a job file.")] = None,
    replicas: Annotated[int | None, typer.Option(help="A fixed number, or where the pool begins with --max.")] = None,
    least: Annotated[int | None, typer.Option("--min", help="Replicas that stay when nobody asks; with --max.")] = None,
    most: Annotated[int | None, typer.Option("--max", help="Let the size follow the backlog, up to this.")] = None,
    cpus_per_replica: Annotated[float | None, typer.Option(help="As in a job file.")] = None,
    gpus_per_replica: Annotated[float | None, typer.Option(help="As in a job file.")] = None,
    url: Url = LOCAL_URL,
) -> None:
    """Keep a teacher without a job: by a job file, by a model, or the one that a job used (and trained)."""
    size = {"replicas": replicas, "autoscale": _autoscale(least, most)}
    fields = {
        "max_length": max_length,
        "template": template,
        "truncation": truncation,
        "backend": backend,
        "dtype": dtype,
        "tokens_per_batch": tokens_per_batch,
        "cpus_per_replica": cpus_per_replica,
        "gpus_per_replica": gpus_per_replica,
        "model": None if model is None else {"id": model, "revision": revision},
    }
    given = {name: value for name, value in (fields | size).items() if value is not None}

    def body() -> dict[str, Any]:
        if (job_file is not None) + (job is not None) + (model is not None) != 1:
            raise SpecError([("add", "needs one of JOB.yaml, --model ID and --job JOB_ID")])
        if job is not None:
            return {"job": job, **given}
        return (_section(job_file) if job_file else {}) | given

    with GatewayClient(url) as client:
        console.print(refuse_bad_input(lambda: client.add_teacher(body()))["name"], highlight=False, soft_wrap=True)


@teachers.command("scale")
def scale_teacher(
    name: Name,
    replicas: Annotated[int | None, typer.Option(help="A fixed number of replicas.")] = None,
    auto: Annotated[bool, typer.Option("--auto", help="Let the size follow the backlog; see --min and --max.")] = False,
    least: Annotated[int | None, typer.Option("--min", help="Of a size that follows the backlog.")] = None,
    most: Annotated[int | None, typer.Option("--max", help="Likewise.")] = None,
    url: Url = LOCAL_URL,
) -> None:
    """Size a pool; jobs leave it alone from then on."""
    mode = "auto" if auto else "fixed" if replicas is not None else None
    size = {"mode": mode, "replicas": replicas, "min_replicas": least, "max_replicas": most}
    given = {field: value for field, value in size.items() if value is not None}
    with GatewayClient(url) as client:
        teacher = refuse_bad_input(lambda: client.scale_teacher(name, given))
    wanted = teacher["replicas"]
    bounds = f", {wanted['min']} to {wanted['max']}" if teacher["mode"] == "auto" else ""
    console.print(f"{teacher['mode']}, {wanted['target']} now{bounds}", highlight=False)


@teachers.command("remove")
def remove_teacher(name: Name, url: Url = LOCAL_URL) -> None:
    """Keep a teacher no longer: its pool goes as soon as no job needs it."""
    with GatewayClient(url) as client:
        refuse_bad_input(lambda: client.remove_teacher(name))


def rerank(
    documents: Annotated[list[str], typer.Argument(metavar="DOCUMENT...", help="What is to be ranked.")],
    model: Annotated[str, typer.Option(help="The teacher's name, or its model's id.")],
    query: Annotated[str, typer.Option(help="What the documents are held against.")],
    url: Url = LOCAL_URL,
) -> None:
    """Rank documents by a teacher, best first: score, raw logit, document."""
    with GatewayClient(url) as client:
        found = refuse_bad_input(lambda: client.rerank(model, query, documents))
    for item in found["results"]:
        line = f"{item['relevance_score']:.4f}  {item['logit']:8.3f}  {documents[item['index']]}"
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _section(job_file: Path) -> dict[str, Any]:
    """The `teacher` section of a job file. The gateway refuses one that is to be trained first."""
    section = load_spec(job_file).teacher.model_dump(mode="json")
    return {name: value for name, value in section.items() if value is not None}


def _autoscale(least: int | None, most: int | None) -> dict[str, int] | None:
    bounds = {"min_replicas": least, "max_replicas": most}
    return {name: value for name, value in bounds.items() if value is not None} or None
