"""The lab: hosts made of namespaces on this machine, on which the real agent runs.

``make demo``, ``make bench`` and tests/e2e are built from it. Nothing is configured outside the
namespaces, and they die with the process that made them: each is held by a process that reads a
pipe from its maker, so that not even ``kill -9`` of the maker leaves one behind.
"""
