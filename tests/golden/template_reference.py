"""The reference for chat templates: Jinja2 with the environment of transformers, and conversations to render.

Used by make_template_goldens.py and check_templates.py.
"""

import json

from transformers.utils import chat_template_utils

NOW = 1721990400  # 2024-07-26 10:40:00 UTC


def compile_template(source):
    template = chat_template_utils._compile_jinja_template(source)

    def strftime_now(fmt):
        import datetime

        return datetime.datetime.fromtimestamp(NOW, datetime.timezone.utc).strftime(fmt)

    template.globals["strftime_now"] = strftime_now
    return template


def reference(request):
    """The text that Jinja2 makes of a request, or None where it raises."""
    values = dict(request.get("extra") or {})
    values.setdefault("documents", None)
    values["messages"] = request["messages"]
    values["tools"] = request.get("tools")
    values["add_generation_prompt"] = request.get("add_generation_prompt", True)
    for name in ("bos_token", "eos_token"):
        if request.get(name):
            values[name] = request[name]
    values = json.loads(json.dumps(values))
    try:
        return compile_template(request["template"]).render(**values), None
    except Exception as error:  # noqa: BLE001: whatever Jinja2 raises is the answer "refused"
        return None, f"{type(error).__name__}: {error}"


def _message(role, content, **more):
    return {"role": role, "content": content, **more}


WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a place, \"now\" or <later>.",
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"type": "string", "description": "City, e.g. Zürich"},
                "days": {"type": ["integer", "null"], "minimum": 0, "maximum": 14, "default": 1},
                "units": {"type": "string", "enum": ["metric", "imperial"]},
                "options": {"type": "object", "properties": {"wind": {"type": "boolean", "default": True}}},
                "hours": {"type": "array", "items": {"type": "number", "multipleOf": 0.5}},
            },
            "required": ["place"],
        },
        "return": {"type": "object", "description": "The forecast"},
    },
}
CLOCK = {
    "type": "function",
    "function": {"name": "now", "description": "Time", "parameters": {"type": "object", "properties": {}}},
}
CALL = {
    "id": "call00001",
    "type": "function",
    "function": {"name": "get_weather", "arguments": {"place": "Zürich", "days": 2, "hours": [0.5, 1e20], "x": None}},
}
CALL_TEXT = {
    "id": "call00002",
    "type": "function",
    "function": {"name": "now", "arguments": "{\"zone\": \"UTC\"}"},
}
EASY = [_message("user", "Hello!")]
TURNS = [
    _message("user", "  What is 1 + 1?\n"),
    _message("assistant", "Two.\n\n"),
    _message("user", "And 2 + 2? <b>&</b> 'quotes' \"double\""),
    _message("assistant", "Four"),
    _message("user", "Danke — 谢谢 🙂"),
]
SYSTEM = [_message("system", "You are terse.\nVery.")]
THINKING = [
    _message("user", "Think."),
    _message("assistant", "<think>\nhm\n\nhm\n</think>\n\nDone.", reasoning_content="hm hm"),
    _message("user", "Again."),
    _message("assistant", "Done again.", reasoning_content="quick"),
    _message("user", "Last."),
]
PARTS = [
    _message("user", [{"type": "text", "text": "Look at "}, {"type": "text", "text": "this."}]),
    _message("assistant", "I see."),
    _message("user", [{"type": "text", "text": "And?"}]),
]


def _tool_turn(call, answer_role="tool", content=None):
    return [
        _message("user", "Weather in Zürich?"),
        _message("assistant", content, tool_calls=[call]),
        _message(answer_role, "{\"sky\": \"blue\"}", tool_call_id=call["id"], name=call["function"]["name"]),
    ]


def conversations():
    """(name, request without template) pairs."""
    tools = [WEATHER, CLOCK]
    cases = {
        "user": dict(messages=EASY),
        "user, no prompt": dict(messages=EASY, add_generation_prompt=False),
        "turns": dict(messages=TURNS),
        "turns, ended": dict(messages=TURNS + [_message("assistant", "Bitte.")], add_generation_prompt=False),
        "system": dict(messages=SYSTEM + EASY),
        "system, turns": dict(messages=SYSTEM + TURNS),
        "empty": dict(messages=[]),
        "empty text": dict(messages=[_message("user", "")]),
        "wrong order": dict(messages=[_message("assistant", "Hi"), _message("assistant", "Hi")]),
        "strange role": dict(messages=[_message("oracle", "Hi")]),
        "developer": dict(messages=[_message("developer", "Be kind.")] + EASY),
        "thinking": dict(messages=THINKING),
        "thinking on": dict(messages=THINKING, extra=dict(enable_thinking=True)),
        "thinking off": dict(messages=THINKING, extra=dict(enable_thinking=False)),
        "kwargs": dict(
            messages=SYSTEM + EASY,
            extra=dict(date_string="1 Jan 2025", custom_tools=None, reasoning_effort="high", xml_tools=[WEATHER],
                       python_tools=[], thinking=True, builtin_tools=["brave_search"]),
        ),
        "parts": dict(messages=PARTS),
        "system, parts": dict(messages=[_message("system", [{"type": "text", "text": "Terse."}])] + PARTS),
        "tools": dict(messages=EASY, tools=tools),
        "tools, system": dict(messages=SYSTEM + TURNS, tools=tools),
        "tools, no list": dict(messages=EASY, tools=[]),
        "call": dict(messages=_tool_turn(CALL), tools=tools),
        "call, text": dict(messages=_tool_turn(CALL, content="Let me see."), tools=tools),
        "call, empty text": dict(messages=_tool_turn(CALL, content=""), tools=tools),
        "call, arguments as text": dict(messages=_tool_turn(CALL_TEXT), tools=tools),
        "call, no tools": dict(messages=_tool_turn(CALL)),
        "call, system, answer": dict(
            messages=SYSTEM + _tool_turn(CALL) + [_message("assistant", "Blue."), _message("user", "Thanks")], tools=tools
        ),
        "two calls": dict(
            messages=[
                _message("user", "Weather and time?"),
                _message("assistant", None, tool_calls=[CALL, CALL_TEXT], reasoning_content="both"),
                _message("tool", "blue", tool_call_id="call00001"),
                _message("tool", "noon", tool_call_id="call00002"),
            ],
            tools=tools,
            extra=dict(enable_thinking=True),
        ),
        "function role": dict(messages=_tool_turn(CALL, "function"), tools=tools),
        "ipython role": dict(messages=_tool_turn(CALL, "ipython"), tools=tools),
        "no content": dict(messages=[{"role": "user"}]),
        "null content": dict(messages=[_message("user", None)]),
        "documents": dict(messages=EASY, extra=dict(documents=[{"title": "T", "text": "body"}])),
    }
    for name, case in cases.items():
        yield name, dict(case, bos_token="<s>", eos_token="</s>", now=NOW)
    yield "no tokens", dict(messages=TURNS, now=NOW)
