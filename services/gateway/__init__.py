"""The REST API and the reconciler: everything a user talks to. Speaks to Ray over HTTP only."""

from services.gateway.app import create_app

__all__ = ["create_app"]
