"""Everything that knows a Flask request: callbacks in, the history out."""
