"""The control plane: events come in from agents, state is kept, decisions go out. Imports nothing of the data plane but
`dataplane.records`, so that it runs on a host of its own.
"""
