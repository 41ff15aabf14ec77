"""Who plays: learners, opponents and reference policies."""
