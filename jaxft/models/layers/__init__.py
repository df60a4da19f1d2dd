"""Modules that two or more families share, and their arithmetic. Nothing here knows about families."""
