"""The command line: reads options and the configuration, puts the parts together. The only composition root."""

__version__ = "0.1.0"
