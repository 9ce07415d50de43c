"""Benchmarks: qoetap and its peers on the same files in one run. Only ours.py knows qoetap; nothing imports this."""
