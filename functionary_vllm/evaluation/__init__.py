"""How well a model calls functions: questions to any OpenAI-compatible endpoint, answers checked, figures told.

Needs the extra `eval`. Talks HTTP only: it imports nothing of the server, and the server nothing of it.
"""
