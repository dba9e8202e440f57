"""Ranked lists on disk: teacher scores, committed exactly once, read while they grow, reused for ever."""
