"""How good is the student: measures per query, paired tests, one result, one report.

Enters: judgements, ranked runs and what training left behind. Leaves: an `EvaluationResult`, a report.html.
"""
