"""The other side of the race: run by the neighbours' own Python, with nothing of ours in reach.

Takes one JSON object a line and answers with one: ``{"make": contender, "events": […], …}`` loads
events, ``{"turn": rounds}`` works through them and gives its processor time. An answer with
``absent`` says which package is not here.

Events go in as the bytes of their JSON and come out as JSON: what a neighbour needs to read and
write them is its own time, as it is ours.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable
from typing import Any

Work = Callable[[bytes], object]


def _orjson(_order: dict[str, Any]) -> Work:
    """Read and write, no scrubbing."""
    import orjson

    loads, dumps = orjson.loads, orjson.dumps
    return lambda raw: dumps(loads(raw))


_PAYLOAD = (
    "$frame.vars || $http.data || $http.headers || $http.cookies || $http.env"
    " || $http.query_string || $breadcrumb.data || extra || server_name"
)
_TWELVE = (
    "@ip:replace",
    "@email:replace",
    "@creditcard:replace",
    "@iban:replace",
    "@imei:replace",
    "@mac:replace",
    "@pemkey:replace",
    "@urlauth:replace",
    "@usssn:replace",
    "@userpath:replace",
    "@password:replace",
    "@bearer:replace",
)


def _relay(config: dict[str, Any]) -> Work:
    """Run Relay's own Rust by its C interface: JSON in, JSON out, no Python objects between."""
    from sentry_relay._lowlevel import lib
    from sentry_relay.utils import decode_str, encode_str, rustcall

    rules = json.dumps(config)
    wrong = decode_str(rustcall(lib.relay_validate_pii_config, encode_str(rules)), free=True)
    assert not wrong, wrong
    text = encode_str(rules)

    def work(raw: bytes) -> str:
        scrubbed: str = decode_str(
            rustcall(lib.relay_pii_strip_event, text, encode_str(raw)), free=True
        )
        return scrubbed

    return work


def _relay_twelve(_order: dict[str, Any]) -> Work:
    """Remove the payload that our schemas do not declare; twelve rules over all other text."""
    return _relay({"applications": {_PAYLOAD: ["@anything:remove"], "$string": _TWELVE}})


def _relay_common(_order: dict[str, Any]) -> Work:
    """Relay's collection of ten rules over all text."""
    return _relay({"applications": {"$string": ["@common"]}})


def _vrl(order: dict[str, Any]) -> Work:
    """Vector's own language: parse, drop the payload, redact by our patterns, write.

    Patterns that its regular expressions do not take are left out; their number is in the answer.
    """
    import pyvrl

    taken = []
    for pattern in order["patterns"]:
        literal = "r'" + pattern.replace("'", r"\x27").replace("\x1e", r"\x1e") + "'"
        try:
            pyvrl.Transform(f'. = redact("x", filters: [{literal}])')
        except Exception:  # noqa: BLE001, S112 - it has one error for all of its own
            continue
        taken.append(literal)
    order["taken"] = len(taken)
    program = pyvrl.Transform(
        f"""
        e = object!(parse_json!(string!(.message)))
        del(e.modules)
        del(e.extra)
        del(e.server_name)
        del(e.request.data)
        del(e.request.headers)
        del(e.request.cookies)
        del(e.request.env)
        del(e.request.query_string)
        if is_array(e.exception.values) {{
          e.exception.values = map_values(array!(e.exception.values)) -> |value| {{
            value.stacktrace.frames = map_values(array!(value.stacktrace.frames)) -> |frame| {{
              del(frame.vars)
              frame
            }}
            value
          }}
        }}
        if is_array(e.breadcrumbs.values) {{
          e.breadcrumbs.values = map_values(array!(e.breadcrumbs.values)) -> |crumb| {{
            del(crumb.data)
            crumb
          }}
        }}
        . = encode_json(redact(e, filters: [{", ".join(taken)}]))
        """
    )
    return lambda raw: program.remap({"message": raw.decode()})


def _presidio(_order: dict[str, Any]) -> Work:
    """Its analyzer with the predefined pattern recognizers and a blank pipeline: no names."""
    import spacy
    import tldextract
    from presidio_analyzer import AnalyzerEngine, RecognizerRegistry
    from presidio_analyzer.nlp_engine import SpacyNlpEngine

    # Else it asks the network for the list of public suffixes.
    tldextract.tldextract.TLD_EXTRACTOR = tldextract.TLDExtract(cache_dir=None, suffix_list_urls=())

    class Blank(SpacyNlpEngine):
        def __init__(self) -> None:
            super().__init__()
            self.nlp = {"en": spacy.blank("en")}

        def load(self) -> None:
            pass

    registry = RecognizerRegistry()
    registry.load_predefined_recognizers(languages=["en"])
    registry.remove_recognizer("SpacyRecognizer")
    engine = AnalyzerEngine(registry=registry, nlp_engine=Blank(), supported_languages=["en"])

    def found(value: Any) -> int:
        if isinstance(value, str):
            return len(engine.analyze(value, language="en"))
        if isinstance(value, dict):
            return sum(map(found, value.values()))
        if isinstance(value, list):
            return sum(map(found, value))
        return 0

    return lambda raw: found(json.loads(raw))


MAKERS = {
    "orjson": _orjson,
    "relay 12 rules": _relay_twelve,
    "relay @common": _relay_common,
    "vrl": _vrl,
    "presidio": _presidio,
}


def _answer(order: dict[str, Any], loaded: dict[str, tuple[Work, list[bytes]]]) -> dict[str, Any]:
    if "turn" in order:
        work, events = loaded[order["name"]]
        began = time.process_time()
        for _ in range(order["turn"]):
            for event in events:
                work(event)
        return {"cpu_s": time.process_time() - began}
    try:
        made = MAKERS[order["make"]](order)
    except ImportError as error:
        return {"absent": error.name or "?"}
    events = [text.encode() for text in order["events"]]
    loaded[order["name"]] = made, events
    gc.collect()
    gc.freeze()
    # What it makes of the first event, so that one can look whether it does what it should.
    first = made(events[0])
    text = first.decode() if isinstance(first, bytes) else str(first)
    return {"first": text, "taken": order.get("taken", 0)}


def main() -> None:
    """Answer until nobody asks any more."""
    loaded: dict[str, tuple[Work, list[bytes]]] = {}
    answers, sys.stdout = sys.stdout, sys.stderr  # packages may print
    for line in sys.stdin:
        answers.write(json.dumps(_answer(json.loads(line), loaded)) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
