"""Scores: one family a file. Each returns plain dictionaries of `{"value", "low", "high"}`, ready for JSON."""
