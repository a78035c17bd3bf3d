"""`radiodata advise`: from a patch alone, or for a cohort that is there."""

from __future__ import annotations

import json

import pytest
from conftest import Tiny
from typer.testing import CliRunner

from radiodata.cli import app
from radiodata.errors import ConfigError


def advised(*arguments: str) -> dict:
    done = CliRunner().invoke(app, ["advise", *arguments, "--json"], catch_exceptions=False)
    assert done.exit_code == 0
    return json.loads(done.stdout)


def test_from_a_patch_alone() -> None:
    found = advised("--patch", "64", "--batch", "2")
    assert found["tile"] in (32, 48, 64)
    assert found["expected"]["batch_bytes"] == 2 * 64**3 * 3


def test_for_a_cohort_that_is_there(tiny: Tiny) -> None:
    found = advised(tiny.cohort.uri, "--patch", "16,16,8", "--key", "CT")
    assert found["tile"] == 16
    assert found["expected"]["batch_bytes"] == 4 * 16 * 16 * 8 * 2


@pytest.mark.parametrize(("option", "value"), [("--patch", "9x9"), ("--storage", "tape")])
def test_what_makes_no_sense(option: str, value: str) -> None:
    arguments = {"--patch": "16", option: value}
    with pytest.raises(ConfigError, match=value):
        advised(*(word for pair in arguments.items() for word in pair))
