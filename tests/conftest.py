"""Fixtures that many tests share."""

from __future__ import annotations

import logging

import pytest


@pytest.fixture
def caught(caplog):
    """The program's log lines, even where another test has configured its handlers."""
    logger = logging.getLogger("observer_agent")
    before = logger.propagate, logger.level
    logger.propagate = True
    logger.setLevel(logging.DEBUG)
    yield caplog
    logger.propagate, level = before
    logger.setLevel(level)
