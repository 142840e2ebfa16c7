"""Version of this package, beside that of the service."""

__version__ = "0.1.0"
