"""The levels of evidence, strongest first (`choice`): what an endpoint must give, who scores it, what may be said.

One file a level (those that score by agreement share one), and one line in `choice.LEVELS`; one suite runs over all of
them (tests/test_audits_levels_suite.py).
"""
