"""Requests that schemathesis takes for invalid and that no server can tell from valid ones.

Read by schemathesis itself, from the variable SCHEMATHESIS_HOOKS.
"""

from __future__ import annotations

import schemathesis

_REPEATED = ("include",)  # fields of a form that are lists


@schemathesis.hook
def filter_case(context: schemathesis.HookContext, case: schemathesis.Case) -> bool:
    """Leave out forms with a list of one, sent as the value alone, or of none, which is not sent."""
    if case.media_type != "multipart/form-data" or not isinstance(case.body, dict):
        return True
    return not any(
        isinstance(value, list) and len(value) < 2 and name not in _REPEATED
        for name, value in case.body.items()
    )
