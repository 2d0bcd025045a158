"""Measuring: ours and its peers in the same processes, in turns, checked against each other.

Each benchmark is one module with a ``run(...)`` that returns a :class:`~stretto.bench.report.Section`, and a
``member(...)`` that lives in the processes it starts (:mod:`stretto.bench.team`).
"""
