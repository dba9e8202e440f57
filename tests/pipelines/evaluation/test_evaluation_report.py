"""report.html: complete, self-contained, safe, and possible with little data.

Why: it is opened from file shares and mail. It must fetch nothing, run nothing that a job's name smuggled in, and
not fail a finished job because one optional series is empty.
"""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from pipelines.errors import PipelineError
from pipelines.evaluation.metrics import MEASURES
from pipelines.evaluation.report import write_report
from pipelines.evaluation.result import SYSTEMS, summarise

LEVELS = dict(zip(SYSTEMS, (0.5, 0.3, 0.6, 0.7, 0.8, 0.9), strict=True))


def _measured(names, queries=30):
    generator = np.random.default_rng(5)
    return {
        name: {
            measure: {f"q{i}": float(min(1, LEVELS[name] + generator.normal(0, 0.1))) for i in range(queries)}
            for measure in MEASURES
        }
        for name in names
    }


def _write(path, names=SYSTEMS, **changes):
    per_query = _measured(names)
    generator = np.random.default_rng(6)
    arguments = {
        "job_name": "quickstart",
        "result": summarise(per_query, num_documents=500),
        "per_query": {name: measures["nDCG@10"] for name, measures in per_query.items()},
        "learning_curve": [
            {"step": s, "loss": 2.0 / s, "loss.list_kl": 1.5 / s, "loss.info_nce": 0.5 / s} for s in range(1, 40)
        ],
        "teacher_scores": generator.normal(0, 5, (20, 8)).astype(np.float32),
        "student_scores": generator.normal(0.3, 0.1, 160),
        "facts": {"Teacher": "cross-encoder, 6 layers", "Pairs": "12,345"},
    }
    write_report(path, **(arguments | changes))
    return path.read_text(encoding="utf-8")


class _Tags(HTMLParser):
    """Collects tags and attributes, and checks that every element is closed in order."""

    VOID = frozenset({"meta", "br", "link", "img", "use", "path"})

    def __init__(self):
        super().__init__()
        self.open, self.seen = [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


def _parsed(page):
    parser = _Tags()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser.seen


def test_everything_asked_for_is_there(tmp_path):
    page = _write(tmp_path / "report.html")
    tags = [tag for tag, _ in _parsed(page)]
    assert tags.count("svg") == 3
    for text in (
        "Distillation raised nDCG@10",
        "Student, labels only (control)",
        "Teacher, re-ranking",
        "Gap closed",
        "weighted sum",
        "list_kl",
        "teacher logits",
        "student scores",
        "Against before: ",
        "cross-encoder, 6 layers",
    ):
        assert text in page
    assert re.findall(r'<th scope="row">(.*?)</th>', page)[3] == "Student, distilled"


def test_it_requests_nothing_and_runs_nothing(tmp_path):
    page = _write(tmp_path / "report.html")
    seen = _parsed(page)
    assert not {"script", "link", "img", "iframe", "object", "image"} & {tag for tag, _ in seen}
    for _, attributes in seen:
        for name in ("href", "xlink:href", "src"):
            assert attributes.get(name, "#").startswith("#")
        assert not any(name.startswith("on") for name in attributes)
    assert not re.search(r"@import|url\((?!#)", page)
    assert "default-src 'none'" in page


def test_texts_from_outside_are_escaped(tmp_path):
    evil = "<script>alert(1)</script>"
    page = _write(
        tmp_path / "report.html",
        job_name=evil,
        facts={evil: evil},
        learning_curve=[{"step": 1, "loss": 1.0, f"loss.{evil}": 1.0, "loss.b": 1.0}],
    )
    assert "script" not in {tag for tag, _ in _parsed(page)}
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 4


def test_ids_of_the_figures_do_not_collide(tmp_path):
    """Figures share one document: a clip path named twice would cut the wrong plot."""
    ids = [attributes["id"] for _, attributes in _parsed(_write(tmp_path / "r.html")) if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_colours_follow_the_readers_theme(tmp_path):
    page = _write(tmp_path / "report.html")
    figures = "".join(re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL))
    assert set(re.findall(r"(?:fill|stroke): (#\w+)", figures)) == set()
    assert "var(--accent)" in figures
    assert "currentColor" in figures


def test_the_same_inputs_give_the_same_bytes(tmp_path):
    assert _write(tmp_path / "a.html") == _write(tmp_path / "b.html")


@pytest.mark.parametrize(
    ("names", "changes", "svgs"),
    [
        (["student_after"], {}, 2),
        (["bm25", "student_after"], {"learning_curve": []}, 1),
        (SYSTEMS, {"learning_curve": [{"step": 1, "loss": 0.3}]}, 3),
        (SYSTEMS, {"teacher_scores": np.array([])}, 3),
        (SYSTEMS, {"teacher_scores": np.array([]), "student_scores": np.array([])}, 2),
        (SYSTEMS, {"teacher_scores": np.full(9, 2.0), "facts": {}}, 3),
    ],
)
def test_little_data_still_gives_a_report(tmp_path, names, changes, svgs):
    page = _write(tmp_path / "report.html", names, **changes)
    assert [tag for tag, _ in _parsed(page)].count("svg") == svgs


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher_scores": np.array([1.0, np.nan])}, "teacher logits: 1 of 2"),
        ({"learning_curve": [{"step": 1, "loss": float("inf")}]}, "loss: 1 of 1"),
        ({"per_query": {"student_after": {"q": 1.0}, "student_before": {"p": 1.0}}}, "different queries"),
    ],
)
def test_numbers_that_cannot_be_drawn_truthfully_are_refused(tmp_path, changes, message):
    with pytest.raises(PipelineError, match=message):
        _write(tmp_path / "report.html", **changes)
