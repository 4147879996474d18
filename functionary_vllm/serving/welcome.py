"""The request that a person can paste as soon as the server answers.

In: where it listens, the model's name, whether a key is wanted. Out: text. Refuses to know anything else.
"""

from __future__ import annotations

_TEXT = """\
{model} is served at {base}. Try it:

  curl {socket}{base}/v1/chat/completions -H 'Content-Type: application/json'{curl_key} -d '{{
    "model": "{model}",
    "messages": [{{"role": "user", "content": "What is the weather in Paris?"}}],
    "tools": [{{"type": "function", "function": {{
      "name": "get_weather",
      "description": "Current weather in a city",
      "parameters": {{"type": "object", "properties": {{"city": {{"type": "string"}}}}, "required": ["city"]}}}}}}],
    "tool_choice": "required", "parallel_tool_calls": false, "temperature": 0
  }}'
"""

_PYTHON = """
or, with the openai package:

  from openai import OpenAI

  client = OpenAI(base_url="{base}/v1", api_key="{key}")
  answer = client.chat.completions.create(
      model="{model}",
      messages=[{{"role": "user", "content": "What is the weather in Paris?"}}],
      tools=[{{"type": "function", "function": {{
          "name": "get_weather",
          "description": "Current weather in a city",
          "parameters": {{"type": "object", "properties": {{"city": {{"type": "string"}}}}, "required": ["city"]}}}}}}],
      tool_choice="required", parallel_tool_calls=False, temperature=0,
  )
  print(answer.choices[0].message.tool_calls)
"""


def welcome(address: str, model: str, *, needs_key: bool = False, secure: bool = False) -> str:
    """`address` is host:port, or the path of a Unix socket."""
    socket = address.startswith("/")
    scheme = "https" if secure else "http"
    values = {
        "model": model,
        "base": f"{scheme}://localhost" if socket else f"{scheme}://{address}",
        "socket": f"--unix-socket {address} " if socket else "",
        "key": "YOUR-KEY" if needs_key else "none",
        "curl_key": " -H 'Authorization: Bearer YOUR-KEY'" if needs_key else "",
    }
    return (_TEXT if socket else _TEXT + _PYTHON).format(**values)
