"""Verifies tokens with PyJWT. Reads JSON from standard input, prints accept or refuse, one line each."""

import json
import sys

import jwt

job = json.load(sys.stdin)
for token in job["tokens"]:
    try:
        jwt.decode(token, job["secret"], algorithms=["HS256"], options={"verify_aud": False})
        print("accept")
    except Exception:
        print("refuse")
