"""The `--set FIELD=VALUE` of every command that reads settings.

Enters: what the user wrote. Leaves: a mapping that `load_spec` and `load_filters` lay over a file.
"""

from pipelines.spec import SpecError

__all__ = ["parse_overrides"]


def parse_overrides(pairs: list[str] | None) -> dict[str, str]:
    """Dotted field -> YAML value.

    Raises:
        SpecError: a pair has no `=`, or nothing before it.
    """
    parsed: dict[str, str] = {}
    for pair in pairs or []:
        field, separator, value = pair.partition("=")
        if not separator or not field:
            raise SpecError([("--set", f"needs FIELD=VALUE, got {pair!r}")])
        parsed[field] = value
    return parsed
