"""Signs tokens with the Python libraries. Reads JSON from standard input, prints name=token lines."""

import json
import sys

import jwt
from authlib.jose import jwt as authlib
from jose import jwt as jose

job = json.load(sys.stdin)
claims, secret, keys = job["claims"], job["secret"], job["keys"]
for alg in ["HS256", "HS384", "HS512"]:
    print(f"PyJWT {alg}={jwt.encode(claims, secret, algorithm=alg)}")
    print(f"python-jose {alg}={jose.encode(claims, secret, algorithm=alg)}")
    print(f"Authlib {alg}={authlib.encode({'alg': alg}, claims, secret).decode()}")
for alg, name in [
    ("RS256", "rsa"),
    ("PS384", "rsa"),
    ("ES256", "p256"),
    ("ES384", "p384"),
    ("ES512", "p521"),
    ("EdDSA", "ed25519"),
]:
    print(f"PyJWT {alg}={jwt.encode(claims, keys[name], algorithm=alg)}")
    if alg != "EdDSA" and not alg.startswith("PS"):
        print(f"python-jose {alg}={jose.encode(claims, keys[name], algorithm=alg)}")
    print(f"Authlib {alg}={authlib.encode({'alg': alg}, claims, keys[name]).decode()}")
