"""The version of mmrt, which bundles and pictures record."""

__version__ = "0.1.0"
