"""`foldserve predict`: ask a running service about files, from the command line."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from foldserve.arguments import Parser, add_json
from foldserve.exit_codes import DONE, FAILED, USAGE
from foldserve.json_document import complain, fill
from foldserve.key_file import KEY_VARIABLE, read_key
from foldserve.patience import shown

from .errors import ClientError, Unreachable
from .sync import Client


def main(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code. What goes wrong is one line on standard error."""
    arguments = _parser().parse_args(argv)
    answers: list[dict[str, Any]] = []
    try:
        with Client(arguments.url, api_key=read_key(arguments.key_file), deadline=arguments.deadline) as client:
            for file in arguments.files:
                top = arguments.top
                options = {"version": arguments.version, "label": arguments.label, "top": top}
                with shown(f"asking about {file}"):
                    answer = client.predict(file, model=arguments.model, **options)
                answers.append({"file": file, "answer": answer})
                if not arguments.json:
                    print(_lines(file, answer), flush=True)
    except Unreachable as err:
        complain(f"foldserve predict: {err}; does a service run at {arguments.url}? --url names another")
        return FAILED
    except ClientError as err:
        complain(f"foldserve predict: {err}")
        return FAILED
    except OSError as err:
        what = f"{err.filename} cannot be read: {err.strerror}" if err.filename else err
        complain(f"foldserve predict: {what}")
        return USAGE
    except ValueError as err:
        complain(f"foldserve predict: {err}")
        return USAGE
    finally:
        fill(answers=answers)
    return DONE


def _lines(file: str, answer: Any) -> str:
    """Return predictions for people to read: the file, and below it what is said of each picture or row."""
    predictions = answer if isinstance(answer, list) else [answer]
    return "\n".join([file, *(f"  {_line(prediction)}" for prediction in predictions)])


def _line(prediction: dict[str, Any]) -> str:
    classes = prediction.get("top", prediction.get("labels"))
    if classes is not None:
        return "\n  ".join(f"{entry['probability']:.4f}  {_named(entry)}" for entry in classes) or "no label"
    if "confidence" in prediction:
        return f"{prediction['confidence']:.4f}  {_named(prediction)}"
    return json.dumps(next(iter(prediction.values())))


def _named(entry: dict[str, Any]) -> str:
    return entry["label"] if entry["label"] is not None else f"class {entry['class_id']}"


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="foldserve predict", description="Ask a running service about files.")
    parser.add_argument("files", nargs="+", help='pictures (PNG, JPEG), or JSON files with {"instances": [...]}')
    parser.add_argument("--model", help="which model; needed only where several are served")
    parser.add_argument("--version", type=int, help="which version of it; the latest where none is named")
    parser.add_argument("--label", help="the version that this label points at")
    parser.add_argument("--top", type=int, help="so many classes, the most probable first")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="where the service is (default: %(default)s)")
    parser.add_argument("--key-file", type=Path, help=f"file that holds the key (default: ${KEY_VARIABLE})")
    parser.add_argument("--deadline", type=float, default=30.0, help="seconds that an answer may take (%(default)s)")
    add_json(parser)
    return parser
