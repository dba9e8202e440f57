"""The export section: nothing unless asked, and what cannot be written is refused with its field and value."""

import json
from typing import Any

import pytest
from tiny import spec_data

from pipelines.spec import ExportSpec, SpecError, parse_spec


def test_a_job_exports_the_plain_folder_unless_asked() -> None:
    assert parse_spec(spec_data()).export == ExportSpec(formats=(), precisions=(), license=None)


def test_the_section_survives_json() -> None:
    # Jobs are stored and posted as JSON, where a tuple is a list.
    section = {"formats": ["onnx", "openvino"], "precisions": ["int8", "binary"], "license": "cc-by-4.0"}
    spec = parse_spec(spec_data(export=section))
    assert parse_spec(json.loads(spec.model_dump_json())) == spec
    assert spec.export.formats == ("onnx", "openvino")


@pytest.mark.parametrize(
    ("section", "path", "shown"),
    [
        ({"formats": ["tensorrt"]}, "export.formats.0", "'tensorrt'"),
        ({"formats": ["onnx", "onnx"]}, "export.formats", "twice: ['onnx', 'onnx']"),
        ({"precisions": ["int4"]}, "export.precisions.0", "'int4'"),
        ({"license": "mine: all\nof it"}, "export.license", "mine"),
        ({"upload": True}, "export.upload", "unknown field"),
    ],
)
def test_a_bad_value_is_shown_beside_its_path(section: dict[str, Any], path: str, shown: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec(spec_data(export=section))
    ((found, message),) = caught.value.problems
    assert found == path
    assert shown in message


def test_nspt_is_refused_for_a_projected_student() -> None:
    # The index that the checkpoint built holds vectors of another length.
    data = spec_data(student={"num_layers": None, "projection": 8}, training={"objective": [{"name": "nspt"}]})
    with pytest.raises(SpecError, match=r"student\.projection makes another student"):
        parse_spec(data)
