"""evaluate.py's parts: what is scored, on what and how, and what is told of it in words, tables and figures."""
