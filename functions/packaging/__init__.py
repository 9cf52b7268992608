"""Builds what is deployed: a zip for each AWS function, a source directory for each Google Cloud function.

Nothing here is shipped. `python -m functions.packaging` needs the development environment (uv and grimp).
"""
