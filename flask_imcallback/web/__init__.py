"""The addresses: callbacks in, history out."""
