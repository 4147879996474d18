"""OpenAI's HTTP API over the pipeline: the only package that knows HTTP, pydantic and the web framework."""
