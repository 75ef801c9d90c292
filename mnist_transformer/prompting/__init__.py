"""Prompts: their grammar, their tokens, and the systems that answer them."""
