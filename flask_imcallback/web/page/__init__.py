"""The history for people, as web pages."""
