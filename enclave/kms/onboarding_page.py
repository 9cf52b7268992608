"""`GET /` of the onboarding listener: one page that calls its methods (spec kms section 1.1).

The page holds nothing of this KMS and needs no token. What it shows it asks for, and what it does it does
with the token that the operator types into it. Nothing in it comes from elsewhere, and the browser is told to
run and to load nothing but what is in it.
"""

import base64
import hashlib
import re
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

PAGE = "onboarding.html"

_INLINE = "<{0}>(.*?)</{0}>"


def page_route() -> Route:
    """Return the route of the page, whose policy names the script and the style in it by their hashes."""
    page = files(__package__).joinpath(PAGE).read_text(encoding="utf-8")
    headers = {
        "content-security-policy": content_security_policy(page),
        "cache-control": "no-store",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
        "x-frame-options": "DENY",
    }

    async def show(_request: Request) -> Response:
        return Response(page, media_type="text/html", headers=headers)

    return Route("/", show)


def content_security_policy(page: str) -> str:
    """Return the policy under which a page runs its own script, and speaks to its own listener."""
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {_hashes(page, 'script')}",
            f"style-src {_hashes(page, 'style')}",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
        )
    )


def _hashes(page: str, element: str) -> str:
    found = re.findall(_INLINE.format(element), page, re.DOTALL)
    return " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in found
    )
