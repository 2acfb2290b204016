"""The sample that the tests run: thirty classes of every difficult kind, and what has to come of each."""

SAMPLE: dict[str, str] = {}
