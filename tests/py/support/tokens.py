"""Tokens as an issuer signs them."""

import time

import jwt

# The key of the gateways here.
SECRET = "the-secret-of-the-python-tests-0123456789"


def sign(user: str, key=SECRET, algorithm: str = "HS256", **header: str) -> str:
    """A token for an hour."""
    return jwt.encode({"sub": user, "exp": int(time.time()) + 3600}, key, algorithm, headers=header)
