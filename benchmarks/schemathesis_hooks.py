"""Requests that schemathesis takes for invalid and that no server can tell from valid ones.

Read by schemathesis itself, from the variable SCHEMATHESIS_HOOKS.
"""

from __future__ import annotations

import schemathesis

_REPEATED = ("include",)  # fields of a form that are lists
_JSON = ("filter",)  # and those whose text is JSON, as which an object is sent, and null


@schemathesis.hook
def filter_case(context: schemathesis.HookContext, case: schemathesis.Case) -> bool:
    """Leave out forms whose lists, objects and null a form cannot tell.

    A list of one is sent as its value alone, and one of none is not sent at all.
    """
    if case.media_type != "multipart/form-data" or not isinstance(case.body, dict):
        return True
    return not any(_is_sent_otherwise(name, value) for name, value in case.body.items())


def _is_sent_otherwise(name: str, value: object) -> bool:
    if name in _REPEATED:
        return not isinstance(value, list)
    if name in _JSON and (value is None or isinstance(value, dict)):
        return True
    return isinstance(value, list) and len(value) < 2
