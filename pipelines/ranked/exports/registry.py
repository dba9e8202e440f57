"""The formats by name.

Enters: a name. Leaves: its `Format`. A new format is one file and one line here.
"""

from pipelines.ranked.exports.flag_embedding import FLAG_EMBEDDING
from pipelines.ranked.exports.format import Format
from pipelines.ranked.exports.pylate import PYLATE
from pipelines.ranked.exports.sentence_transformers import LABELED_LIST, N_TUPLE
from pipelines.ranked.exports.tevatron import TEVATRON, TEVATRON_LISTWISE
from pipelines.ranked.exports.trec import TREC
from pipelines.spec import SpecError

__all__ = ["FORMATS", "format_named"]

FORMATS: dict[str, Format] = {
    each.name: each for each in (N_TUPLE, LABELED_LIST, FLAG_EMBEDDING, TEVATRON, TEVATRON_LISTWISE, PYLATE, TREC)
}


def format_named(name: str) -> Format:
    """The format of that name.

    Raises:
        SpecError: there is none; the message lists what there is.
    """
    if name not in FORMATS:
        raise SpecError([("format", f"there is no format {name!r}; there are: {', '.join(FORMATS)}")])
    return FORMATS[name]
