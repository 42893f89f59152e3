"""Who changed what, in the log, whichever door it came through and however it ended."""

import json
import logging.config

import pytest

from foldserve.service.logs import log_config
from tests.support.operator import publish, running


@pytest.mark.parametrize("level", ["info", "error"])
def test_audit_lines_are_written_at_every_log_level(capsys, level):
    """Fewer lines for people must not mean fewer for the auditor."""
    logging.config.dictConfig(log_config(level, human=False))
    try:
        logging.getLogger("foldserve.audit").info("audit", extra={"action": "load"})
        logging.getLogger("foldserve.service").info("other")
    finally:
        logging.config.dictConfig({"version": 1, "disable_existing_loggers": False, "root": {"level": "WARNING"}})
        for name in ("foldserve", "foldserve.audit", "uvicorn.error"):
            logging.getLogger(name).setLevel(logging.NOTSET)
    events = [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()]
    assert events == (["audit", "other"] if level == "info" else ["audit"])


def test_each_change_leaves_one_line_with_the_key_and_the_address(models, caplog):
    """What was done, to which version, by whose key, from where, and whether it held."""
    caplog.set_level("INFO", "foldserve.audit")
    for version in (1, 2):
        publish(models, version)
    with running(models) as operator:
        for call, body in (
            ("load", {}), ("promote", {"version": 1}), ("promote", {"version": 2, "label": "stable"}),
            ("rollback", {"label": "stable"}), ("shadow", {"version": 2}), ("promote", {"version": 9}), ("unload", {}),
        ):  # fmt: skip
            operator.call(f"models/fashion/{call}", **body)
        operator.delete("/v2/repository/models/fashion/shadow")
    lines = [record for record in caplog.records if record.getMessage() == "audit"]
    assert [(line.action, line.version, getattr(line, "label", None)) for line in lines] == [
        ("load", None, None),
        ("promote", 1, "latest"),
        ("promote", 2, "stable"),
        ("rollback", None, "stable"),
        ("shadow", 2, None),
        ("promote", 9, "latest"),
        ("unload", None, None),
        ("end-shadow", None, None),
    ]
    assert {(line.model, line.key, line.address) for line in lines} == {("fashion", "operator", "127.0.0.1")}
    results = [line.result for line in lines]
    assert results[3].startswith("InvalidInput: rollback")
    assert results[5].startswith("ModelNotFound: model 'fashion' has no version 9")
    assert {results[place] for place in (0, 1, 2, 4, 6, 7)} == {"done"}
