"""What a reader wants to see of stored lists: a filter as a function from lists to candidates.

Enters: filter settings, the rule of positives, texts. Leaves: a `View` for `tail.follow`, None if it filters nothing.
Positives are found in the list as it is stored, so a filter never makes an unsure teacher sure.
"""

import numpy as np
import numpy.typing as npt

from pipelines.ranked.columns import ListColumns
from pipelines.ranked.filters import TextOf, judge
from pipelines.ranked.positives import PositiveRule, positives
from pipelines.ranked.tail import View
from pipelines.spec_sections.filters import FilterSpec

__all__ = ["filtered_view"]


def filtered_view(spec: FilterSpec, rule: PositiveRule, text_of: TextOf) -> View | None:
    """The view that `spec` describes.

    Args:
        spec: the settings.
        rule: which candidates are positives.
        text_of: texts of documents, given distinct ids.
    """
    if spec == FilterSpec():
        return None

    def view(columns: ListColumns) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int16]]:
        verdicts = judge(columns, spec, positive=positives(columns, rule), text_of=text_of)
        return verdicts.kept, np.where(verdicts.relabelled, np.int16(1), columns.relevance)

    return view
