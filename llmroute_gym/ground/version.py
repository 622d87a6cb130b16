"""The version, for the package's face and for what its files say of their origin."""

__version__ = "0.1.0"
