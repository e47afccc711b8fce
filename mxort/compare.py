"""Stands in for ``mxort.comparison`` until ``mxort/__init__.py`` names that module."""

from mxort.comparison import compare as compare
