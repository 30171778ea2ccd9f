"""Faults on command over HTTP, on a loopback port of its own: what a campaign outside this process calls.

With `Authorization: Bearer TOKEN` (not the API key)::

    POST   /control/faults        a fault as `fault_kinds` describes it: {"what": "lost", "endpoints": ["create_job"]};
                                  201 {"id": "fault-1"}, or 400 {"detail": "..."} that says what is wrong
    GET    /control/faults        {"faults": [...]}: those in force, each with `id` and `left`
    DELETE /control/faults        withdraws all
    DELETE /control/faults/ID     withdraws one; 404 where it is not in force
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING

from flask import Flask, Response, jsonify, request

from persistent_runner.errors import ConfigError

if TYPE_CHECKING:
    from persistent_runner.local_platform.faults import Faults

PATH = "/control/faults"


def make_control_app(faults: Faults, token: str) -> Flask:
    """Return the application that orders faults for whoever knows the token."""
    app = Flask("control", static_folder=None)

    def check() -> tuple[Response, int] | None:
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        if scheme == "Bearer" and hmac.compare_digest(given.strip().encode(), token.encode()):
            return None
        return jsonify({"detail": "This needs the control token."}), 401

    def listed() -> Response:
        return jsonify({"faults": faults.listed()})

    def ordered() -> tuple[Response, int]:
        return jsonify({"id": faults.order(request.get_json(silent=True, force=True))}), 201

    def cleared() -> tuple[str, int]:
        faults.clear()
        return "", 204

    def removed(order_id: str) -> tuple[str, int]:
        return "", 204 if faults.remove(order_id) else 404

    app.before_request(check)
    app.register_error_handler(ConfigError, lambda error: (jsonify({"detail": str(error)}), 400))
    app.add_url_rule(PATH, view_func=listed, methods=["GET"])
    app.add_url_rule(PATH, view_func=ordered, methods=["POST"])
    app.add_url_rule(PATH, view_func=cleared, methods=["DELETE"])
    app.add_url_rule(f"{PATH}/<order_id>", view_func=removed, methods=["DELETE"])
    return app
