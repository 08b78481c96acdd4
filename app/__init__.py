"""The service: HTTP in front, an engine behind."""

VERSION = "0.1.0"
