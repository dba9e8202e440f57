"""Artefacts: what the job made can be listed and fetched, and nothing else of the disk can."""

import pytest

JOBS = "/v1/distillation/jobs"


@pytest.fixture
def job(client, spec, settings):
    """A job with files, and with links that lead out of its folder."""
    job_id = client.post(JOBS, json={"spec": spec}).json()["id"]
    folder = settings.root / "jobs" / job_id / "artifacts"
    (folder / "student").mkdir(parents=True)
    (folder / "report.html").write_text("<script>alert(1)</script>")
    (folder / "student" / "model.safetensors").write_bytes(bytes(range(256)))
    (settings.root / "secret.txt").write_text("secret")
    (folder / "link.txt").symlink_to(settings.root / "secret.txt")
    (folder / "folder").symlink_to(settings.root)
    (folder / "loop").symlink_to(folder / "loop")
    return job_id


def test_list(client, job):
    page = client.get(f"{JOBS}/{job}/artifacts").json()
    assert [(item["name"], item["bytes"]) for item in page["data"]] == [
        ("report.html", 25),
        ("student/model.safetensors", 256),
    ]
    assert page["data"][0]["object"] == "distillation.job.artifact"
    rest = client.get(f"{JOBS}/{job}/artifacts", params={"after": "report.html"}).json()
    assert [item["id"] for item in rest["data"]] == ["student/model.safetensors"]


def test_a_job_without_artefacts(client, spec):
    job_id = client.post(JOBS, json={"spec": spec}).json()["id"]
    assert client.get(f"{JOBS}/{job_id}/artifacts").json()["data"] == []
    assert client.get(f"{JOBS}/ddjob-none/artifacts").status_code == 404


def test_download(client, job):
    whole = client.get(f"{JOBS}/{job}/artifacts/student/model.safetensors")
    assert whole.content == bytes(range(256))
    part = client.get(f"{JOBS}/{job}/artifacts/student/model.safetensors", headers={"range": "bytes=10-12"})
    assert (part.status_code, part.content) == (206, bytes([10, 11, 12]))


def test_a_report_is_not_run_in_this_origin(client, job):
    headers = client.get(f"{JOBS}/{job}/artifacts/report.html").headers
    assert headers["content-disposition"].startswith("attachment")
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-security-policy"] == "sandbox"


@pytest.mark.parametrize(
    "name",
    [
        "none.txt",
        "student",
        "%2e%2e/%2e%2e/%2e%2e/secret.txt",
        "..%2f..%2f..%2fsecret.txt",
        "link.txt",
        "folder/secret.txt",
        "loop",
        "%2fetc%2fpasswd",
        "a%00b",
        "%ff",
        "x" * 300,
    ],
)
def test_names_that_lead_elsewhere_do_not_exist(client, job, name):
    answer = client.get(f"{JOBS}/{job}/artifacts/{name}")
    assert answer.status_code == 404
    assert b"secret" not in answer.content.replace(b"secret.txt", b"")


def test_absolute_names_of_own_files_do_not_tell_the_root(client, job, settings):
    """Even a right guess of the absolute path is only the same file, and the answers carry no path."""
    listing = client.get(f"{JOBS}/{job}/artifacts").text
    assert str(settings.root) not in listing
