"""Synthetic conversations for training: concepts, values and phrases in, OpenAI messages out."""
