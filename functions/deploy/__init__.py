"""Deployments: the record, the engine that carries it forward, and the API in front."""
