"""A pytest fixture that holds a balance loss to the definition; pytest finds it by itself."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from moebench.conform import Conformance


@pytest.fixture
def assert_conforms() -> "Callable[..., Conformance]":
    """`assert_conforms("MODULE:FUNCTION", scope="global")` fails with what deviates."""

    def check(target: str, scope: Any = "global", **trainer: Any) -> "Conformance":
        from moebench.conform import conformance

        found = conformance(target, scope, **trainer)
        wrong = [f"{each.scenario}: {each.said}" for each in found.verdicts if not each.conforms]
        assert found.conforms, "\n".join([f"{target} is not a {scope} balance loss", *wrong])
        return found

    return check
